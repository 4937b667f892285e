"""What people wear: no picture without it changes, and the record says where it is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from omniportrait.lab.world.attributes import ATTRIBUTES, phrase_of
from omniportrait.lab.world.identity import identity
from omniportrait.lab.world.portrait import render
from omniportrait.lab.world.shade import LABELS
from omniportrait.lab.world.shards import view_of
from omniportrait.lab.world.tailored import Tailored

BEFORE = {
    0: "ba125ba12bb08817", 1: "1bda0548f47fda28", 2: "6e9b2d9014313116", 11: "7fe4b476c6736dc0",
    25: "d4875f9b2d6f946c", 32: "9654b17ac3aaa70d",
}  # fmt: skip
"""Pictures, labels and records of people with short, no and curly hair, a fringe, long hair and a bob, as they were
rendered before anybody could wear anything."""
WORN = LABELS.index("worn")


@pytest.mark.parametrize("number", BEFORE)
def test_pictures_of_those_who_wear_nothing_are_what_they_were(number):
    found = render(identity(number), view_of(0, number, 1 + number % 3), 128)
    content = found.picture.tobytes() + found.labels.tobytes() + json.dumps(found.record).encode()
    assert hashlib.sha256(content).hexdigest()[:16] == BEFORE[number]


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_what_is_worn_is_seen_and_the_rest_stays(name):
    """Beside what is worn and its rim, where two pixels are mixed into one, nothing changes but what it hides."""
    person, view = identity(1), view_of(0, 1, 1, "close")
    bare, worn = (render(person, replace(view, worn=each), 128) for each in ((), (name,)))
    there = worn.labels == WORN
    assert 0.01 < there.mean() < 0.3 and not (bare.labels == WORN).any()
    near = np.pad(there, 2)
    grown = np.max([near[i : i + 128, j : j + 128] for i in range(5) for j in range(5)], 0)
    assert (bare.picture[~grown] == worn.picture[~grown]).all()
    assert worn.record["caption"] == bare.record["caption"] and worn.record["target"] == ATTRIBUTES[name].phrase
    x0, y0, x1, y1 = worn.record["target_box"]
    rows, columns = np.nonzero(there)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (y0, y1, x0, x1)


def test_several_things_at_once():
    found = render(identity(1), replace(view_of(0, 1, 1), worn=("hat", "glasses")), 64)
    assert found.record["target"] == "wearing a hat, with round glasses"
    with pytest.raises(ValueError, match="Nobody can wear 'scarf': use one of hat, glasses, face paint"):
        phrase_of(["scarf"])


def test_tailored_set_is_biased():
    pictures = Tailored(("hat",), people=4, pictures=40)
    views = [pictures.view(number) for number in range(40)]
    assert {view.light for view in views} == {"evening"} and len({view.background for view in views}) == 5
    assert {view.worn for view in views} == {("hat",)} and len({view.seed for view in views}) == 40
    (key, portrait), *_ = Tailored(("hat",), people=2, pictures=1, size=64)
    assert key == "000000" and (portrait.labels == WORN).any()
