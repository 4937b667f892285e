"""Exact correspondence between renders: against itself, back and forth, and against the marks that were painted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from omniportrait.guidance.ic_portrait.flow import by_places
from omniportrait.lab.world.flow import exact_flow, exact_flow_between
from omniportrait.lab.world.identity import identity
from omniportrait.lab.world.portrait import PLACE, render
from omniportrait.lab.world.shards import view_of

SIZE = 128


@pytest.fixture(scope="module")
def sitters():
    """Two people, two views each, and the pictures."""
    people = [identity(5), identity(8)]
    views = [[replace(view_of(0, person.number, 0), yaw=yaw) for yaw in (-14.0, 12.0)] for person in people]
    pictures = [[render(*pair, SIZE) for pair in zip([person] * 2, own, strict=True)]
                for person, own in zip(people, views, strict=True)]  # fmt: skip
    return people, views, pictures


def centres(size: int = SIZE) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5), -1)


def test_a_view_onto_itself_is_where_it_is(sitters):
    (person, _), (views, _), _ = sitters
    flow = exact_flow(person, views[0], views[0], SIZE)
    assert flow.visible.sum() > 0.2 * SIZE**2
    np.testing.assert_allclose(flow.places[flow.visible], centres()[flow.visible], atol=0.01)


def test_there_and_back_is_where_one_was(sitters):
    (person, _), (views, _), _ = sitters
    there, back = exact_flow(person, *views, SIZE), exact_flow(person, *views[::-1], SIZE)
    column, row = (there.places[there.visible][:, axis].astype(int) for axis in (0, 1))
    both = back.visible[row, column]
    away = np.linalg.norm(back.places[row, column] - centres()[there.visible], axis=1)[both]
    assert both.mean() > 0.9 and np.median(away) < 1 and np.quantile(away, 0.95) < 3


def test_marks_and_landmarks_lie_on_each_other(sitters):
    """The record says where moles are by what was painted, the flow by where triangles went."""
    (person, other), views, pictures = sitters
    flows = [
        (exact_flow(person, *views[0], SIZE), *pictures[0], "details"),
        (exact_flow_between((person, views[0][0]), (other, views[1][1]), (pictures[0][0], pictures[1][1])),
         pictures[0][0], pictures[1][1], "landmarks"),
    ]  # fmt: skip
    for flow, lit, profile, what in flows:
        found = 0
        for number, (one, two) in enumerate(zip(lit.record[what], profile.record[what], strict=True)):
            if what == "details" and not (one["visible"] and two["visible"]):
                continue
            (x, y), wanted = ((p["x"], p["y"]) if what == "details" else p for p in (one, two))
            if flow.visible[int(y), int(x)] and (what == "details" or number > 1):  # an eye's centre lies inside of it
                found += 1
                assert np.linalg.norm(flow.places[int(y), int(x)] - wanted) < 3, what
        assert found >= 1, what


def test_place_maps_tell_the_same_flow(sitters):
    """For two people, from what a shard keeps of each picture by itself."""
    people, views, pictures = sitters
    shown = pictures[0][0], pictures[1][1]
    exact = exact_flow_between((people[0], views[0][0]), (people[1], views[1][1]), shown)
    flow, known = by_places(*(torch.from_numpy(picture.places)[None].float() for picture in shown), reach=0.12)
    sampled = (
        exact.places[PLACE // 2 :: PLACE, PLACE // 2 :: PLACE],
        exact.visible[PLACE // 2 :: PLACE, PLACE // 2 :: PLACE],
    )
    both = known[0].numpy() & sampled[1]
    away = np.linalg.norm(flow[0].numpy() * SIZE - sampled[0], axis=-1)[both]
    assert both.sum() > 0.8 * sampled[1].sum() and away.mean() < 0.6 * PLACE
