"""Means over people with 95% intervals, by resampling the people: pictures of one person are not independent.

Each resample draws one person fewer than there are, with replacement: as many as there are would make the mean's
variance too small by (n - 1) / n (Rao and Wu 1988), which for ten people is a tenth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean over `people` and the 2.5 and 97.5% points of its resampled values."""

    mean: float
    low: float
    high: float
    people: int

    @property
    def significant(self) -> bool:
        """Whether 0 is outside, for a difference."""
        return not self.low <= 0 <= self.high


def bootstrap(values: Sequence[float], draws: int = DRAWS, seed: int = 0) -> Interval | None:
    """Interval of the mean of values, one a person. None without values."""
    if not len(values):
        return None
    each = np.asarray(values, np.float64)
    chosen = np.random.default_rng(seed).integers(len(each), size=(draws, max(len(each) - 1, 1)))
    low, high = np.quantile(each[chosen].mean(1), (0.025, 0.975), method="inverted_cdf")
    return Interval(float(each.mean()), float(low), float(high), len(each))


def over_people(values: Iterable[tuple[Hashable, float]]) -> Interval | None:
    """Of (person, value): first the mean over each person's values, then over people."""
    people: dict[Hashable, list[float]] = defaultdict(list)
    for person, value in values:
        people[person].append(value)
    return bootstrap([float(np.mean(each)) for each in people.values()])


def text_of(value: Interval | None, factor: float = 1.0, digits: int = 3, difference: bool = False) -> str:
    """`mean [low, high]` in Markdown; a difference with its sign, and bold where 0 is outside."""
    if value is None:
        return "–"
    sign = "+" if difference else ""
    mean, low, high = (f"{each * factor:{sign}.{digits}f}" for each in (value.mean, value.low, value.high))
    return f"{f'**{mean}**' if difference and value.significant else mean} [{low}, {high}]"


def mean_of(rows: Iterable[Mapping], column: str) -> Interval | None:
    """Of a column of measured rows, over those that have a value."""
    return over_people((row["person"], row[column]) for row in rows if row[column] is not None)


def difference_of(rows: Iterable[Mapping], baseline: Iterable[Mapping], column: str) -> Interval | None:
    """Of `rows` minus `baseline`, over the pairs of same person and prompt in which both have a value."""
    known = {(row["person"], row["prompt"]): row[column] for row in baseline if row[column] is not None}
    pairs = ((row, known.get((row["person"], row["prompt"]))) for row in rows if row[column] is not None)
    return over_people((row["person"], row[column] - other) for row, other in pairs if other is not None)
