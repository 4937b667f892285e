"""What is made of the errors that `bench photographs` measures, against sums by hand."""

from __future__ import annotations

import pytest
from omniportrait.lab.bench.judge import VIEWS
from omniportrait.lab.bench.photographs import (
    ATTENTION,
    COUNTS,
    FULL,
    MEAN,
    PHOTOGRAPHS,
    PIVOT,
    TIMES,
    WORD,
    removed,
    table,
)
from omniportrait.lab.bench.portraits import Case


def errors(part: str, *values: tuple[str, int, float], person: int = 0) -> dict:
    """The plain word's error is 4 at every t."""
    found = [("own", 1, 4.0)] if part == WORD else values
    listed = [{"whose": w, "count": n, "t": t, "error": e} for w, n, e in found for t in TIMES]
    return {(Case(person, 0), part): listed}


def test_the_persons_own_share_is_over_somebody_elses():
    own, apart = removed(errors(WORD) | errors(PIVOT, ("own", 2, 1.0), ("other", 2, 3.0)), PIVOT, 2)
    assert own == {Case(0, 0): pytest.approx(0.75)} and apart == {Case(0, 0): pytest.approx(0.5)}


def test_several_are_compared_with_one_of_the_same_part():
    found = {}
    for person in range(3):
        for part, values in {PIVOT: (3, 2, 1), ATTENTION: (3, 2, 1), MEAN: (None, 2, 2), FULL: (None, 1, 0)}.items():
            known = [("own", n, float(e)) for n, e in zip(COUNTS, values, strict=True) if e is not None]
            found |= errors(part, *known, *(("other", n, 4.0) for _, n, _ in known), person=person)
        found |= errors(WORD, person=person)
    lines = table(found, (PIVOT, ATTENTION, MEAN, FULL)).splitlines()
    cells = {tuple(line.split(" | ")[:2]): line.split(" | ")[2:] for line in lines}
    assert cells[f"| {ATTENTION}", "1"][-1].startswith("–")
    assert "+50.00" in cells[f"| {ATTENTION}", "4"][-1] and "+75.00" in cells[f"| {FULL}", "4"][-1]
    mean = cells[f"| {MEAN}", "2"]
    assert "+25.00" in mean[-1] and "+50.00" in mean[1]


def test_no_photograph_is_one_that_the_likeness_is_measured_on():
    assert not set(VIEWS) & set(PHOTOGRAPHS)
