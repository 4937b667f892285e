"""The matrix's generator: every wanted combination is there, and far fewer rows than the full product."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from omniportrait.lab.bench import pairs


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=5), st.integers(0, 9))
def test_every_pair_meets(sizes, seed):
    columns = {f"c{i}": [f"{i}.{k}" for k in range(size)] for i, size in enumerate(sizes)}
    rows = pairs.array(columns, seed=seed)
    for a, b in itertools.combinations(columns, 2):
        met = {(row[a], row[b]) for row in rows}
        assert met == set(itertools.product(columns[a], columns[b]))
    largest = sorted(sizes)[-2:]
    assert largest[0] * largest[1] <= len(rows) <= 2 * largest[0] * largest[1] + 2
    assert rows == pairs.array(columns, seed=seed)


def test_groups_and_rows_that_may_not_be():
    columns = {"a": list("123"), "b": list("xyz"), "c": list("pq")}
    rows = pairs.array(columns, [("a", "b"), ("c",)], allowed=lambda row: row["a"] + row["b"] != "1x")
    met = {row["a"] + row["b"] for row in rows}
    assert met == {a + b for a in "123" for b in "xyz"} - {"1x"}
    assert {row["c"] for row in rows} == set("pq") and len(rows) == 8
