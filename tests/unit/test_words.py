"""One splitter for captions and prompts: tags, underscores, numbers, escapes, and text without spaces."""

from __future__ import annotations

import pytest
from omniportrait.demo.prompt import guess_subject
from omniportrait.sampling.words import Place, escaped, find_noun, has_word, places, plain, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1girl, solo", ["1", "girl", ",", "solo"]),
        ("a_photo_of_a_Woman", ["a", "_", "photo", "_", "of", "_", "a", "_", "woman"]),
        ("the woman's hat (red:1.2)", ["the", "woman", "'s", "hat", "(", "red", ":", "1", ".", "2", ")"]),
        ("cafe\u0301", ["café"]),
        ("  \n", []),
    ],
)
def test_words_are_split_by_kind_of_letter(text, words):
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("caption", "noun"),
    [
        ("1girl, solo, smile", "girl"),
        ("1boy", "boy"),
        ("a_photo_of_a_woman_smiling", "woman"),
        ("portrait-of-a-man.", "man"),
        ("A young Man and a woman", "man"),
        ("a 3d model of a dragon next to a woman", "woman"),
        ("a clock face behind an old man", "man"),
        ("the face of a woman", "woman"),
        ("a model in a red dress", "model"),
        ("woman \\(cosplay\\)", "woman"),
        ("a humanoid, mannequin, girlish, 2girls", None),
        ("", None),
    ],
)
def test_the_noun_of_a_caption(caption, noun):
    assert find_noun(caption) == noun
    if noun:
        assert guess_subject(caption) == noun


def test_longer_names_win_and_users_words_are_kept():
    assert find_noun("Anna Maria in a park", ("anna", "Anna Maria")) == "Anna Maria"
    assert find_noun("a woman", ("Zoë",)) is None


@pytest.mark.parametrize(
    ("text", "subject", "held"),
    [
        ("1girl, solo", "girl", True),
        ("1girl, solo", "1girl", True),
        ("a_woman", "woman", True),
        ("A Woman in red", "woman", True),
        ("hatsune \\(cosplay\\) woman", "hatsune (cosplay)", True),
        ("hatsune (cosplay) woman", "hatsune \\(cosplay\\)", True),
        ("a superwoman", "woman", False),
        ("a mantelpiece", "man", False),
        ("a woman", "  ", False),
        ("a woman, red", ",", False),
        ("一个女人在花园里", "女人", True),
        ("一个女人在花园里", "男人", False),
        ("モデルの女性が立つ", "女性", True),
        ("3人の女の子が", "3人", True),
        ("ผู้หญิงในสวน", "ผู้หญิง", True),
        ("여자가 정원에", "여자", True),
    ],
)
def test_a_text_holds_a_subject(text, subject, held):
    assert has_word(text, subject) == held


def test_whole_words_come_before_parts_of_words():
    assert places(["女人", "的女人", "女人"], ["女人"]) == [Place(0, 0, 0, 2), Place(2, 2, 0, 2)]
    assert places(["女人和女人"], ["女人"]) == [Place(0, 0, 0, 2), Place(0, 0, 3, 5)]
    assert places(["a", "b", "a", "b"], ["a", "b"]) == [Place(0, 1, 0, 1), Place(2, 3, 0, 1)]
    assert places(["ab"], ["b"]) == places([], ["b"]) == places(["a"], []) == []


def test_brackets_are_escaped_once():
    for text in ("a (b) c", "a \\(b\\) c"):
        assert plain(text) == "a (b) c" and escaped(text) == "a \\(b\\) c"
