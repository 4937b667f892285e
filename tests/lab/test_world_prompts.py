"""The held-out prompts are held out, and there are as many as the measures need."""

from __future__ import annotations

from collections import Counter

import numpy as np
from omniportrait.lab.world.prompts import HELD_OUT_PROMPTS, Prompt
from omniportrait.lab.world.shards import view_of

SEED, IDENTITIES, VIEWS = 0, 2000, 8  # the defaults of `run.py make pictures`


def test_no_training_portrait_shows_a_held_out_prompt():
    shown = set()
    for number in range(IDENTITIES):
        for index in range(VIEWS + 1):
            view = view_of(SEED, number, index)
            shown.add(Prompt(view.expression, view.colour, view.garment, view.background))
    assert len(shown) > 10_000
    assert len(set(HELD_OUT_PROMPTS)) == 30
    assert not shown & set(HELD_OUT_PROMPTS)


def test_clothes_do_not_tell_who_wears_them():
    """The first draw of an identity is its subject: if a view shared that stream, its first draw would follow it."""
    for index in range(3):
        women, worn = Counter(), Counter()
        for number in range(1500):
            garment = view_of(SEED, number, index).garment
            worn[garment] += 1
            women[garment] += int(np.random.default_rng((SEED, number)).integers(2) == 0)
        # of some 136 fair draws each; 0.2 is more than four and a half deviations
        assert len(worn) == 11 and all(0.3 < women[garment] / count < 0.7 for garment, count in worn.items())


def test_prompts_in_words():
    assert Prompt("angry", "red", "suit", "beach").text("man") == "an angry man in a red suit on a beach"
