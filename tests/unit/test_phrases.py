"""Base text, target and phrases by hand; columns against CLIP's own tokens."""

from __future__ import annotations

import pytest
from omniportrait.sampling.phrases import base_text, complete_text, marked, phrases_of

CASES = {
    "A smiling woman in a red shirt in a forest": ["smiling woman", "red shirt", "forest"],
    "an old man": ["old man"],
    "a woman, red hair, blue eyes": ["woman", "red hair", "blue eyes"],
    "a girl holding a cat in front of the house": ["girl", "cat", "house"],
    "a man at the beach, by night": ["man", "beach", "night"],
    "the bride under an umbrella beside a lake": ["bride", "umbrella", "lake"],
    "A photo of Anna": ["photo of Anna"],
    "a ring": ["ring"],
    "wearing glasses": ["glasses"],
    "": [],
    " , ,": [],
    "a woman near the window; soft light.": ["woman", "window", "soft light"],
}


@pytest.mark.parametrize("text", CASES)
def test_phrases(text):
    assert phrases_of(text) == CASES[text]


@pytest.mark.parametrize(
    ("caption", "target", "base"),
    [
        ("a man in a red coat, wearing a hat", "wearing a hat", "a man in a red coat"),
        ("a man wearing a hat in a park", "wearing a hat", "a man in a park"),
        ("a man wearing a hat in a park", "a hat", "a man in a park"),
        ("a man with blond hair and a beard", "blond hair", "a man and a beard"),
        ("Wearing a Hat, a man in a park", "wearing a hat", "a man in a park"),
        ("a man, and a hat, in a park", "a hat", "a man, in a park"),
        ("a man in a park.", "wearing a hat", "a man in a park"),
        ("a hat", "a hat", ""),
        ("a man in that chair", "hat", "a man in that chair"),
        ("a hat and a hat", "a hat", ""),
        ("a man", "", "a man"),
    ],
)
def test_target_is_taken_out_with_what_joined_it(caption, target, base):
    assert base_text(caption, target) == base


def test_complete_text_is_base_comma_target():
    assert complete_text("a man in a park.", "wearing a hat ") == "a man in a park, wearing a hat"
    assert complete_text("a photo (1990s)", "wearing a hat") == "a photo (1990s) , wearing a hat"  # "),": one token


def test_marks_of_a_caption():
    assert marked("a man, [[wearing a hat]]") == ("a man, wearing a hat", "wearing a hat")
    assert marked("a man [in] a park") == ("a man [in] a park", "")
