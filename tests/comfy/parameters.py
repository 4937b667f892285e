"""A test's parameters without their whole product: what is independent needs not meet in every combination."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from omniportrait.lab.bench.pairs import array


def in_turn(**columns: Sequence) -> pytest.MarkDecorator:
    """As many rows as the longest column has values; the shorter ones begin again."""
    most = max(map(len, columns.values()))
    return _rows(columns, [[row % len(values) for values in columns.values()] for row in range(most)])


def all_pairs(**columns: Sequence) -> pytest.MarkDecorator:
    """Few rows in which every two values of every two columns meet."""
    rows = array({name: [str(place) for place in range(len(values))] for name, values in columns.items()})
    return _rows(columns, [[int(row[name]) for name in columns] for row in rows])


def _rows(columns: dict[str, Sequence], places: list[list[int]]) -> pytest.MarkDecorator:
    rows = [[values[k] for values, k in zip(columns.values(), row, strict=True)] for row in places]
    return pytest.mark.parametrize(list(columns), rows, indirect=[name for name in columns if name == "family"])
