"""Pivot Conditioning and its loader as ComfyUI runs them: under inference mode, on core's own CLIP."""

from __future__ import annotations

import asyncio
import os

import comfy.model_management
import comfy.model_patcher
import pytest
import torch
from omniportrait.lab.testbed import small, texts
from omniportrait.lab.testbed.texts import TEXT, assert_unchanged, changed_rows, condition, encode, fingerprint
from omniportrait.models.pivot.encoder import prepare_face
from omniportrait.models.pivot.file import save
from omniportrait.sampling.record import RECORDS_KEY, records_of

import nodes

WOMAN, MAN = 5, 9  # of texts.TEXT: <start> a photo of a woman and an old man


@pytest.fixture(params=texts.MODELS)
def family(request):
    return request.param


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty models/pivot_encoders, registered as the pack registers it."""
    import folder_paths
    from omniportrait.nodes import register_model_folders

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    folder_paths.folder_names_and_paths.pop("pivot_encoders", None)
    register_model_folders()
    (tmp_path / "pivot_encoders").mkdir()
    return tmp_path / "pivot_encoders"


@pytest.fixture
def load(folder):
    """load(family, ...): the handle of such an encoder, through a file and the loader node."""
    from omniportrait.nodes.pivot_encoder_loader import PivotEncoderLoader

    def through_a_file(family: str, **options):
        save(folder / "face.safetensors", texts.encoder(family, **options), step=5)
        with torch.inference_mode():
            return PivotEncoderLoader.execute("face.safetensors").result[0]

    return through_a_file


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


# The loader


def loader():
    from omniportrait.nodes.pivot_encoder_loader import PivotEncoderLoader

    return PivotEncoderLoader


def test_the_loader_gives_the_files_encoder_in_comfyuis_care(family, load):
    handle = load(family)
    assert handle.name == "face.safetensors"
    assert (handle.header.config.family, handle.header.step) == (family, 5)
    assert isinstance(handle.patcher, comfy.model_patcher.ModelPatcher)
    assert handle.patcher.load_device == comfy.model_management.text_encoder_device()
    assert handle.patcher.offload_device == comfy.model_management.text_encoder_offload_device()
    assert handle.patcher.model_size() >= sum(weight.nbytes for weight in texts.encoder(family).parameters())
    wanted = texts.encoder(family).state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in handle.patcher.model.state_dict().items())


def test_the_list_holds_safetensors_only_and_keeps_folders_of_the_user(folder, tmp_path):
    import folder_paths
    from omniportrait.nodes import register_model_folders

    (folder / "notes.txt").write_text("x")
    (folder / "sub").mkdir()
    save(folder / "sub" / "one.safetensors", texts.encoder("sd15"), step=0)
    assert folder_paths.get_filename_list("pivot_encoders") == [os.path.join("sub", "one.safetensors")]
    folder_paths.folder_names_and_paths["pivot_encoders"] = ([str(tmp_path / "mine")], set())
    register_model_folders()
    register_model_folders()
    assert folder_paths.get_folder_paths("pivot_encoders") == [str(tmp_path / "mine"), str(folder)]


def test_the_fingerprint_follows_the_file(folder):
    save(folder / "face.safetensors", texts.encoder("sd15"), step=1)
    first = loader().fingerprint_inputs("face.safetensors")
    assert loader().fingerprint_inputs("face.safetensors") == first
    os.utime(folder / "face.safetensors", ns=(1, 1))
    assert loader().fingerprint_inputs("face.safetensors") != first
    assert loader().fingerprint_inputs("nowhere.safetensors") == "nowhere.safetensors"


def test_a_missing_file_is_said_with_the_folder(folder):
    save(folder / "face.safetensors", texts.encoder("sd15"), step=1)
    assert loader().validate_inputs("face.safetensors") is True
    told = loader().validate_inputs("nowhere.safetensors")
    assert told.startswith('There is no pivot encoder "nowhere.safetensors"') and str(folder) in told
    with pytest.raises(ValueError, match="There is no pivot encoder"):
        loader().execute("nowhere.safetensors")
    assert loader().validate_inputs("../pivot_encoders/face.safetensors") is not True


def test_the_name_may_come_through_a_link(folder):
    """ComfyUI then asks with None, before the run, and must neither refuse nor run the node anew each time."""
    import execution

    node = loader()
    inputs, _, _ = execution.get_input_data({"pivot_encoder_name": ["1", 0]}, node, "2")
    asked = asyncio.run(execution._async_map_node_over_list("prompt", "2", node, inputs, "validate_inputs"))
    assert asked == [True]
    asked = asyncio.run(execution._async_map_node_over_list("prompt", "2", node, inputs, "fingerprint_inputs"))
    assert asked == [None]


def test_a_file_of_another_kind_is_said(folder):
    torch.save({"weight": torch.zeros(3)}, folder / "pickled.safetensors")
    with pytest.raises(ValueError, match="pickled.safetensors is a pickled checkpoint"):
        loader().execute("pickled.safetensors")


def test_comfyui_loads_and_unloads_the_encoder_and_nobody_changes_it(family, load):
    clip, handle = texts.clip(family), load(family)
    before = {key: value.clone() for key, value in handle.patcher.model.state_dict().items()}
    first = condition(clip, pivot_encoder=handle)[0][0]
    assert any(loaded.model is handle.patcher for loaded in comfy.model_management.current_loaded_models)
    comfy.model_management.unload_all_models()
    assert all(loaded.model is not handle.patcher for loaded in comfy.model_management.current_loaded_models)
    again = condition(clip, pivot_encoder=handle)[0][0]
    assert torch.equal(first, again)
    after = handle.patcher.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(weight.requires_grad for weight in handle.patcher.model.parameters())


def test_a_half_precision_file_computes_in_float32_on_a_cpu(folder, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "text_encoder_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(comfy.model_management, "text_encoder_offload_device", lambda: torch.device("cpu"))
    save(folder / "half.safetensors", texts.encoder("sd15"), step=0, dtype=torch.float16)
    with torch.inference_mode():
        handle = loader().execute("half.safetensors").result[0]
    assert handle.header.dtype == torch.float16
    assert {value.dtype for value in handle.patcher.model.state_dict().values()} == {torch.float32}
    rows = condition(texts.clip("sd15"), pivot_encoder=handle)[0][0]
    assert changed_rows(rows, encode(texts.clip("sd15"))[0][0]) == [WOMAN]


def test_numbers_that_are_not_finite_are_refused_by_name(load):
    handle = load("sd15")
    with torch.inference_mode():
        handle.patcher.model.tower.ln_post.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="face.safetensors gave numbers that are not finite"):
        condition(texts.clip("sd15"), pivot_encoder=handle)
