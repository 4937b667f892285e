"""Columns of measured rows, and the differences of two variants' rows, as means over people with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..measures.intervals import Interval, over_people


def mean_of(rows: Iterable[Mapping], column: str) -> Interval | None:
    """Of a column, over the rows that have a value."""
    return over_people((row["person"], row[column]) for row in rows if row[column] is not None)


def difference_of(rows: Iterable[Mapping], baseline: Iterable[Mapping], column: str) -> Interval | None:
    """Of `rows` minus `baseline`, over the pairs of same person and prompt in which both have a value."""
    known = {(row["person"], row["prompt"]): row[column] for row in baseline if row[column] is not None}
    pairs = ((row, known.get((row["person"], row["prompt"]))) for row in rows if row[column] is not None)
    return over_people((row["person"], row[column] - other) for row, other in pairs if other is not None)
