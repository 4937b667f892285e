"""Columns of SPF-Portrait's texts, on ComfyUI's own CLIPs of SD1.5 and SDXL."""

from __future__ import annotations

import pytest
import torch
from omniportrait.lab.testbed import texts
from omniportrait.sampling.phrases import columns_of, complete_text, phrases_of
from omniportrait.sampling.words import escaped

BASE, TARGET = "a smiling woman in a red shirt in a forest", "wearing a hat"


def tokens(clip, text: str) -> list[int]:
    (chunk,) = next(iter(clip.tokenize(text).values()))
    return [int(token) for token, *_ in chunk]


def ids(clip, text: str) -> list[int]:
    found = tokens(clip, text)
    return found[1 : found.index(clip.tokenizer.clip_l.end_token)]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_columns_hold_the_words_they_stand_for(family):
    clip = texts.clip(family)
    found = columns_of(clip, BASE, TARGET, [*phrases_of(BASE), "a dog"])
    whole = tokens(clip, complete_text(BASE, TARGET))
    assert whole[1 : found.base + 1] == ids(clip, BASE)
    assert whole[slice(*found.target)] == ids(clip, TARGET)
    assert whole[found.end] == clip.tokenizer.clip_l.end_token
    assert [whole[slice(*span)] for span in found.phrases] == [ids(clip, phrase) for phrase in phrases_of(BASE)]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_states_of_the_base_text_do_not_change_with_the_target(family):
    """As far as rounding goes: the encoder reads from left to right."""
    clip = texts.clip(family)
    found = columns_of(clip, BASE, TARGET, [])
    short, long = (texts.encode(clip, text)[0][0][0] for text in (BASE, complete_text(BASE, TARGET)))
    torch.testing.assert_close(short[: found.base + 1], long[: found.base + 1], rtol=1e-4, atol=1e-4)
    assert (short[found.base + 1] - long[found.base + 1]).abs().max() > 0.01


def test_brackets_are_characters():
    clip = texts.clip("sd15")
    found = columns_of(clip, "a woman (smiling)", TARGET, ["smiling"])
    assert len(found.phrases) == 1 and found.base == 5


@pytest.mark.parametrize("base", ["a woman (smiling)", 'a sign that says "open"', "a battery at 50%", "a [portrait]"])
def test_a_sign_at_the_end_of_the_base_text_moves_nothing(base):
    clip = texts.clip("sd15")
    found, whole = columns_of(clip, base, TARGET, []), tokens(clip, complete_text(escaped(base), TARGET))
    assert whole[1 : found.base + 1] == ids(clip, escaped(base)) and whole[slice(*found.target)] == ids(clip, TARGET)


def test_what_cannot_be_placed_is_one_sentence():
    clip = texts.clip("sd15")
    long = "a woman " + "far " * 72
    assert columns_of(clip, "a woman " + "far " * 71, "hat", []).end == 76
    for base, target, said in ((long, "a hat", "too long"), (" ,", "a hat", "base text"), ("a", "!", "target text")):
        with pytest.raises(ValueError, match=said):
            columns_of(clip, base, target, [])
