"""All-pairs arrays: few rows in which every two values of every two columns meet at least once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable

Row = tuple[str, ...]
TRIES = 12
"""Candidates made for each row; the one that covers most is taken."""


def wanted_tuples(columns: dict[str, list[str]], together: Iterable[tuple[str, ...]]) -> set[tuple]:
    """Every combination of values, as ((column, value), …), for each group of column names."""
    return {
        tuple(zip(group, values, strict=True))
        for group in together
        for values in itertools.product(*(columns[name] for name in group))
    }


def array(
    columns: dict[str, list[str]],
    together: Iterable[tuple[str, ...]] | None = None,
    allowed: Callable[[dict[str, str]], bool] = lambda row: True,
    seed: int = 0,
) -> list[dict[str, str]]:
    """Rows (column to value) that hold every combination of each group in `together`; all pairs by default.

    allowed: rows that may occur; combinations that no allowed row can hold are given up. Greedy, and the same for the
    same seed.
    """
    names = list(columns)
    together = [tuple(group) for group in (together or itertools.combinations(names, 2))]
    missing = wanted_tuples(columns, together)
    chance, rows = random.Random(seed), []
    while missing:
        first = min(missing)
        candidates = [_filled(dict(first), columns, missing, together, chance) for _ in range(TRIES)]
        candidates = [row for row in candidates if allowed(row)]
        if not candidates:
            missing.remove(first)
            continue
        best = max(candidates, key=lambda row: len(_covered(row, together) & missing))
        missing -= _covered(best, together)
        rows.append({name: best[name] for name in names})
    return rows


def _covered(row: dict[str, str], together: list[tuple[str, ...]]) -> set[tuple]:
    return {tuple((name, row[name]) for name in group) for group in together}


def _filled(row: dict, columns: dict, missing: set, together: list, chance: random.Random) -> dict[str, str]:
    """A whole row around the given values: column by column, in any order, the value that completes most."""
    for name in chance.sample(sorted(set(columns) - set(row)), len(columns) - len(row)):
        groups = [group for group in together if name in group and all(each in row or each == name for each in group)]

        def gain(value: str, name: str = name, groups: list = groups) -> int:
            trial = row | {name: value}
            return sum(tuple((each, trial[each]) for each in group) in missing for group in groups)

        values = chance.sample(columns[name], len(columns[name]))
        row[name] = max(values, key=gain)
    return row
