"""Pivot Encoder Loader: the list of files, and the encoder in ComfyUI's care."""

from __future__ import annotations

import asyncio
import os

import comfy.model_management
import comfy.model_patcher
import pytest
import torch
from omniportrait.lab.testbed import texts
from omniportrait.lab.testbed.texts import changed_rows, condition, encode
from omniportrait.models.pivot.file import save

WOMAN = 5  # of texts.TEXT: <start> a photo of a woman and an old man


@pytest.fixture(params=texts.MODELS)
def family(request):
    return request.param


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
