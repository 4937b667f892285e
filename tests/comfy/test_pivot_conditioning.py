"""Pivot Conditioning as ComfyUI runs them: under inference mode, on core's own CLIP."""

from __future__ import annotations

import pytest
import torch
from omniportrait.lab.testbed import small, texts
from omniportrait.lab.testbed.texts import TEXT, assert_unchanged, changed_rows, condition, encode, fingerprint
from omniportrait.models.pivot.encoder import prepare_face
from omniportrait.sampling.record import RECORDS_KEY, records_of

import nodes

WOMAN, MAN = 5, 9  # of texts.TEXT: <start> a photo of a woman and an old man


@pytest.fixture(params=texts.MODELS)
def family(request):
    return request.param


def test_without_an_encoder_the_text_is_clip_text_encodes_and_carries_the_record(family):
    clip, face = texts.clip(family), small.face()
    ((rows, options),) = condition(clip, face=face)
    ((plain, plain_options),) = encode(clip)
    assert torch.equal(rows, plain)
    assert torch.equal(options["pooled_output"], plain_options["pooled_output"])
    assert set(options) == {*plain_options, RECORDS_KEY}
    (record,) = records_of(options)
    assert (record.text, record.subject, record.occurrence) == (TEXT, "woman", 0)
    assert (record.token_index, record.token_count) == (WOMAN, 77)
    assert record.face is face and record.region is None
    ((reference, _),) = record.reference_conditioning
    assert torch.equal(reference, encode(clip, "a photo of a woman")[0][0])
    assert record.reference_token_index == 5


@pytest.mark.quick
def test_with_an_encoder_only_the_words_row_changes(family, load):
    clip, handle, face = texts.clip(family), load(family), small.face()
    ((rows, options),) = condition(clip, pivot_encoder=handle, face=face)
    ((plain, plain_options),) = encode(clip)
    assert changed_rows(rows, plain) == [WOMAN]
    assert torch.equal(options["pooled_output"], plain_options["pooled_output"])
    encoder = texts.encoder(family).eval()
    with torch.no_grad():
        pixels = prepare_face(face.crop, 28, face.mask)
        expected = encoder(pixels, plain[:, WOMAN])
    torch.testing.assert_close(rows[:, WOMAN], expected, rtol=1e-4, atol=1e-4)
    (record,) = records_of(options)
    ((reference, _),) = record.reference_conditioning
    ((plain_reference, _),) = encode(clip, "a photo of a woman")
    assert changed_rows(reference, plain_reference) == [record.reference_token_index]
    with torch.no_grad():
        expected = encoder(pixels, plain_reference[:, record.reference_token_index])
    torch.testing.assert_close(reference[:, record.reference_token_index], expected, rtol=1e-4, atol=1e-4)


def test_strength_goes_from_the_word_to_the_pivot(family, load):
    clip, handle = texts.clip(family), load(family)
    plain = encode(clip)[0][0]
    none, half, full, twice = (
        condition(clip, pivot_encoder=handle, strength=strength)[0][0] for strength in (0.0, 0.5, 1.0, 2.0)
    )
    assert torch.equal(none, plain)
    torch.testing.assert_close(half, (plain + full) / 2, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(twice, 2 * full - plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fusion", ["linear", "mlp"])
def test_an_untrained_encoder_changes_nothing(family, load, fusion):
    clip = texts.clip(family)
    handle = load(family, trained=False, fusion=fusion)
    ((rows, options),) = condition(clip, pivot_encoder=handle)
    assert torch.equal(rows, encode(clip)[0][0])
    ((reference, _),) = records_of(options)[0].reference_conditioning
    assert torch.equal(reference, encode(clip, "a photo of a woman")[0][0])


def test_another_face_is_another_pivot(load):
    clip, handle = texts.clip("sd15"), load("sd15")
    one, two = (condition(clip, pivot_encoder=handle, face=small.face(seed))[0][0] for seed in (0, 1))
    assert changed_rows(one, two) == [WOMAN]


def test_people_are_chained(family, load):
    clip, handle = texts.clip(family), load(family)
    region = torch.zeros(1, 32, 32)
    region[..., 16:] = 1
    first = condition(clip, pivot_encoder=handle, face=small.face(0))
    before = fingerprint(first)
    second = condition(
        clip,
        subject="old man",
        face=small.face(1),
        pivot_encoder=handle,
        base_conditioning=first,
        region=region,
    )
    assert_unchanged(first, before)
    ((rows, options),) = second
    assert changed_rows(rows, first[0][0]) == [MAN]
    assert changed_rows(rows, encode(clip)[0][0]) == [WOMAN, MAN]
    one, two = records_of(options)
    assert one is records_of(first[0][1])[0]
    assert (two.subject, two.token_index) == ("old man", MAN)
    assert one.region is None and torch.equal(two.region, region)
    third = condition(clip, subject="garden", base_conditioning=second)
    assert [record.token_index for record in records_of(third[0][1])] == [WOMAN, MAN, 12]


def test_one_word_for_two_people(load):
    clip, text = texts.clip("sd15"), "a woman beside a woman"
    first = condition(clip, text, pivot_encoder=load("sd15"))
    second = condition(clip, text, occurrence=2, base_conditioning=first)
    assert [record.token_index for record in records_of(second[0][1])] == [2, 5]
    with pytest.raises(ValueError, match='already has a person at occurrence 2 of "woman"'):
        condition(clip, text, occurrence=2, base_conditioning=second)


def test_a_full_chunk_that_differs_in_its_last_word_alone_is_refused():
    """Two of its 77 rows differ, as with an identity, but the end token has seen the other word."""
    clip, text = texts.clip("sd15"), "woman " + "red " * 73 + "garden"
    base = encode(clip, text.replace("garden", "forest"))
    assert changed_rows(base[0][0], encode(clip, text)[0][0]) == [75, 76]
    with pytest.raises(ValueError, match="was not made from this text"):
        condition(clip, text, base_conditioning=base)


def test_many_people_in_one_text(load):
    """Rows that records account for do not count against the text."""
    clip, handle, text = texts.clip("sd15"), load("sd15"), "woman " * 10
    made = None
    for number in range(1, 11):
        made = condition(clip, text, occurrence=number, pivot_encoder=handle, base_conditioning=made)
    assert changed_rows(made[0][0], encode(clip, text)[0][0]) == list(range(1, 11))
    assert len(records_of(made[0][1])) == 10


def test_a_base_of_another_text_is_refused(family):
    clip = texts.clip(family)
    for text in (
        "a photo of a woman",
        TEXT + ", smiling",
        TEXT.replace("garden", "forest"),
        TEXT.replace("a photo", "a film"),
    ):
        with pytest.raises(ValueError, match="was not made from this text"):
            condition(clip, base_conditioning=encode(clip, text))
    other = texts.clip("sdxl" if family == "sd15" else "sd15")
    with pytest.raises(ValueError, match="was not made from this text"):
        condition(clip, base_conditioning=encode(other))


def test_a_base_whose_one_row_differs_is_annotated_like_photomakers():
    """One row may hold an identity; everything behind it, which has seen the words, is the same."""
    clip = texts.clip("sd15")
    base = encode(clip, TEXT.replace("1.2", "1.5"))
    made = condition(clip, base_conditioning=base)
    assert torch.equal(made[0][0], base[0][0]) and records_of(made[0][1])[0].token_index == WOMAN


def test_a_base_of_another_clip_skip_is_refused_and_of_the_same_is_not():
    clip = texts.clip("sd15")
    skipped = clip.clone()
    skipped.clip_layer(-2)
    base = encode(skipped)
    with pytest.raises(ValueError, match="same clip skip"):
        condition(clip, base_conditioning=base)
    assert torch.equal(condition(skipped, base_conditioning=base)[0][0], base[0][0])


def test_only_the_entries_of_the_text_are_annotated():
    """ConditioningCombine puts conditionings behind one another: the others pass as they are."""
    clip = texts.clip("sd15")
    other, own = encode(clip, "a garden at night"), encode(clip)
    combined = nodes.ConditioningCombine().combine(other, own)[0]
    before = fingerprint(combined)
    made = condition(clip, base_conditioning=combined)
    assert [len(records_of(options)) for _, options in made] == [0, 1]
    assert all(torch.equal(one[0], two[0]) for one, two in zip(made, combined, strict=True))
    assert_unchanged(combined, before)


def test_the_record_survives_cores_conditioning_nodes():
    clip = texts.clip("sd15")
    made = condition(clip)
    area = nodes.ConditioningSetArea().append(made, 64, 64, 0, 0, 1.0)[0]
    assert records_of(area[0][1]) == records_of(made[0][1])
    again = condition(clip, subject="man", base_conditioning=area)
    assert len(records_of(again[0][1])) == 2 and again[0][1]["area"] == area[0][1]["area"]


@pytest.mark.parametrize("before", [0, 74, 160])
def test_prompts_of_several_chunks(load, before):
    clip, text = texts.clip("sd15"), "red " * before + "woman in a garden"
    column = 77 * (before // 75) + 1 + before % 75
    rows = condition(clip, text, pivot_encoder=load("sd15"))
    assert changed_rows(rows[0][0], encode(clip, text)[0][0]) == [column]
    assert records_of(rows[0][1])[0].token_count == rows[0][0].shape[1]
    chained = condition(clip, text, subject="garden", base_conditioning=rows)
    assert len(records_of(chained[0][1])) == 2


def test_an_encoder_of_the_other_family_is_refused_with_both_widths(load):
    with pytest.raises(ValueError, match=r"face.safetensors was made for sdxl \(text width 2048\).* CLIP's is 768"):
        condition(texts.clip("sd15"), pivot_encoder=load("sdxl"))
    with pytest.raises(ValueError, match=r"made for sd15 \(text width 768\).* CLIP's is 2048"):
        condition(texts.clip("sdxl"), pivot_encoder=load("sd15"))


@pytest.mark.parametrize(
    "inputs, told",
    [
        (dict(text="  \n"), "text is empty"),
        (dict(subject=" "), "subject is empty"),
        (dict(subject="zebra"), "its words, which are a, photo, of, woman, and, an, old, man, in, garden"),
        (dict(occurrence=2), 'holds "woman" once'),
        (dict(region=torch.zeros(1, 8, 8)), "region mask is empty"),
        (dict(region=torch.ones(1, 8, 8, 3)), "region has the shape"),
    ],
)
def test_what_does_not_fit_is_said(inputs, told):
    with pytest.raises(ValueError, match=told) as caught:
        condition(texts.clip("sd15"), **inputs)
    assert str(caught.value).endswith(".") and ". " not in str(caught.value)


def test_no_clip():
    with pytest.raises(ValueError, match="clip input is empty"):
        condition(None)


def test_a_region_is_one_mask_in_0_to_1():
    clip = texts.clip("sd15")

    def region(mask: torch.Tensor) -> torch.Tensor:
        return records_of(condition(clip, region=mask)[0][1])[0].region

    flat = torch.zeros(8, 12)
    flat[2, 3] = 1
    assert torch.equal(region(flat), flat[None])
    batch = torch.zeros(2, 8, 12)
    batch[0, 1, 1], batch[1, 7, 2] = 5.0, float("nan")
    batch[1, 4, 4] = 1.0
    expected = torch.zeros(1, 8, 12)
    expected[0, 1, 1] = expected[0, 4, 4] = 1
    given = batch.clone()
    assert torch.equal(region(batch), expected)
    assert torch.equal(batch.nan_to_num(9), given.nan_to_num(9))
    assert torch.equal(region(batch.half()), expected)
