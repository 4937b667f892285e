"""PhotoMaker as the pivot: what core's own nodes make is annotated at the right word and left as it is."""

from __future__ import annotations

import pytest
import torch
from comfy_extras import nodes_photomaker
from omniportrait.lab.testbed import texts
from omniportrait.lab.testbed.texts import assert_unchanged, changed_rows, condition, encode, fingerprint
from omniportrait.sampling.record import records_of


@pytest.fixture(scope="module")
def photomaker():
    """Core's PhotoMaker encoder with an image tower of one layer and random weights."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setitem(nodes_photomaker.VISION_CONFIG_DICT, "num_hidden_layers", 1)
        made = nodes_photomaker.PhotoMakerIDEncoder()
        made.load_state_dict(texts.randomise(made, 8))
        return made.float()


def photomakers(clip, photomaker, text: str) -> list:
    with torch.inference_mode():
        return nodes_photomaker.PhotoMakerEncode.execute(photomaker, torch.rand(1, 64, 64, 3), clip, text).result[0]


@pytest.mark.parametrize(
    "text, column",
    [
        ("a photo of a woman photomaker wearing a red jacket", 5),
        ("woman photomaker", 1),
        ("a photo of a (woman:1.2) photomaker , an old man", 5),
    ],
)
def test_photomakers_conditioning_is_annotated_at_its_word(photomaker, text, column):
    """With the trigger behind the word, core's node fuses the face into the word's own row."""
    clip = texts.clip("sdxl")
    base = photomakers(clip, photomaker, text)
    before = fingerprint(base)
    ((rows, options),) = condition(clip, text, base_conditioning=base)
    assert torch.equal(rows, base[0][0])
    assert records_of(options)[0].token_index == column
    assert_unchanged(base, before)
    assert changed_rows(rows, encode(clip, text)[0][0]) == [column]
    with pytest.raises(ValueError, match="was not made from this text"):
        condition(clip, text + " at night", base_conditioning=base)


def test_where_core_puts_photomakers_face_is_as_the_help_page_says(photomaker):
    clip = texts.clip("sdxl")
    for text, row in (("a woman photomaker, smiling", []), ("a photo, of a woman photomaker", [5])):
        base = photomakers(clip, photomaker, text)
        assert changed_rows(base[0][0], encode(clip, text)[0][0]) == row
        assert records_of(condition(clip, text, base_conditioning=base)[0][1])[0].token_index == 2 + 4 * bool(row)


def test_a_word_that_photomaker_left_out_with_its_trigger(photomaker):
    """Its trigger in front: core's filter then takes the whole segment, and nothing of the prompt is encoded."""
    clip, text = texts.clip("sdxl"), "photomaker woman in a garden"
    base = photomakers(clip, photomaker, text)
    with pytest.raises(ValueError, match='PhotoMaker Encode left "woman" out together with its trigger'):
        condition(clip, text, base_conditioning=base)
    with pytest.raises(ValueError, match='does not hold the subject "zebra"'):
        condition(clip, text, subject="zebra", base_conditioning=base)


def test_photomakers_conditioning_takes_a_second_person(photomaker):
    clip, text = texts.clip("sdxl"), "a woman photomaker and an old man"
    base = photomakers(clip, photomaker, text)
    one = condition(clip, text, base_conditioning=base)
    two = condition(clip, text, subject="man", base_conditioning=one)
    assert [record.subject for record in records_of(two[0][1])] == ["woman", "man"]
    assert torch.equal(two[0][0], base[0][0])


def with_identity(base: list, rows: list[int]) -> list:
    """A conditioning whose rows a PhotoMaker has put a face into."""
    generator = torch.Generator().manual_seed(11)
    states = base[0][0].clone()
    states[:, rows] = torch.randn(1, len(rows), states.shape[2], generator=generator)
    return [[states, base[0][1]]]


FOREST = "a photo of a woman {} in a forest"
PLUS = {
    "img": (FOREST.format("img"), "a photo of a woman", [5], "woman", 5),
    "a trigger of two tokens": (FOREST.format("photomaker"), "a photo of a woman", [5], "woman", 5),
    "two photographs": (FOREST.format("sks"), "a photo of a woman woman", [5, 6], "woman", 5),
    "the rest kept": (FOREST.format("sks"), "a photo of a woman woman in a forest", [5, 6], "woman", 5),
    "two tokens, the rest kept": (FOREST.format("photomaker"), "a photo of a woman in a forest", [5], "woman", 5),
    "two triggers": ("a man img and a woman img in a park", "a man and a woman", [2, 5], "woman", 5),
    "a weight": ("a photo of a (woman:1.3) img , smiling", "a photo of a (woman:1.3)", [5], "woman", 5),
    "a word before the person": ("a man beside a woman img", "a man beside a woman", [5], "man", 2),
}


@pytest.mark.parametrize("name", PLUS)
def test_the_word_that_another_packs_photomaker_took_for_its_trigger_is_found(name):
    """PhotoMaker-Plus drops its trigger, whatever word it is, repeats the one before it for each photograph, and leaves
    out what follows; the paper's pipeline keeps that."""
    text, encoded, fused, subject, column = PLUS[name]
    clip = texts.clip("sdxl")
    base = with_identity(encode(clip, encoded), fused)
    before = fingerprint(base)
    ((rows, options),) = condition(clip, text, subject=subject, base_conditioning=base)
    assert torch.equal(rows, base[0][0])
    assert records_of(options)[0].token_index == column
    assert_unchanged(base, before)


def test_a_text_that_no_trigger_explains_is_refused():
    clip, text = texts.clip("sdxl"), FOREST.format("img")
    for other in ("a photo of a dog", "a photo of a woman in a garden"):
        with pytest.raises(ValueError, match="was not made from this text"):
            condition(clip, text, base_conditioning=with_identity(encode(clip, other), [5]))
    behind = with_identity(encode(clip, "a photo of a garden"), [5])
    with pytest.raises(ValueError, match='left "woman" out together with its trigger'):
        condition(clip, "a photo of a garden img with a woman", base_conditioning=behind)
