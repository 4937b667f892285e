"""The pivot encoder's file: what goes in comes out, and whatever else it may be is refused in one sentence."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, replace

import pytest
import torch
from omniportrait.models.pivot.encoder import CLIP_MEAN, CLIP_STD, PivotConfig
from omniportrait.models.pivot.file import PivotHeader, load, read_header, save
from pivot_files import CONFIG, NAME, TOWER, encoder, metadata, refusal, write
from safetensors import safe_open
from safetensors.torch import save_file


@pytest.mark.parametrize("fusion", ["linear", "mlp"])
@pytest.mark.parametrize("family, widths", [("sd15", (768,)), ("sdxl", (768, 1280)), ("generic", (8, 12, 16))])
def test_round_trip(tmp_path, family, widths, fusion):
    made = encoder(PivotConfig(family, widths, TOWER, fusion))
    save(tmp_path / NAME, made, step=1234)
    back, header = load(tmp_path / NAME)
    assert header == PivotHeader(PivotConfig(family, widths, TOWER, fusion), 1234, torch.float32)
    assert read_header(tmp_path / NAME) == header
    assert back.config == made.config and not back.training
    assert list(back.state_dict()) == list(made.state_dict())
    assert all(torch.equal(back.state_dict()[key], value) for key, value in made.state_dict().items())
    pixels, text = torch.randn(2, 3, 28, 28), torch.randn(2, sum(widths))
    assert torch.equal(back(pixels, text), made.eval()(pixels, text))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_for_the_tower_alone(tmp_path, dtype):
    made = encoder()
    save(tmp_path / NAME, made, step=0, dtype=dtype)
    back, header = load(tmp_path / NAME)
    assert header.dtype == dtype and header.step == 0
    for key, value in back.state_dict().items():
        assert value.dtype == (dtype if key.startswith("tower.") else torch.float32)
        assert torch.equal(value.float(), made.state_dict()[key].to(dtype).float())
    wide, _ = load(tmp_path / NAME, torch.float32)
    assert {value.dtype for value in wide.state_dict().values()} == {torch.float32}


def test_the_header_is_what_the_format_says(tmp_path):
    save(tmp_path / NAME, encoder(), step=7)
    with safe_open(tmp_path / NAME, framework="pt") as file:
        assert file.metadata() == metadata()


def test_how_it_was_made_is_kept_for_people(tmp_path):
    """Names of files are any bytes, which Python shows as lone surrogates."""
    made = {"objective.eta": 2e-3, "checkpoint": "Grüße \udcff\n.safetensors", "seconds": float("inf")}
    save(tmp_path / NAME, encoder(), step=7, made=made)
    with safe_open(tmp_path / NAME, framework="pt") as file:
        told = file.metadata()
    assert json.loads(told.pop("made")) == made and told == metadata()
    assert load(tmp_path / NAME)[1] == PivotHeader(CONFIG, 7, torch.float32)


@pytest.mark.parametrize("made", ["", "{", "[" * 100_000, "NaN", "x" * 1_000_000, '{"format": "a LoRA"}', "\0\n\u202e"])
def test_nobody_reads_how_it_was_made(tmp_path, made):
    assert load(write(tmp_path / NAME, made=made))[1] == PivotHeader(CONFIG, 7, torch.float32)


def test_the_normalisation_is_in_the_file_and_clips_where_it_is_not(tmp_path):
    own = replace(CONFIG, tower=replace(TOWER, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2)))
    save(tmp_path / NAME, encoder(own), step=0)
    assert read_header(tmp_path / NAME).config == own and load(tmp_path / NAME)[0].config == own
    older = {name: value for name, value in asdict(TOWER).items() if name not in ("mean", "std")}
    assert read_header(write(tmp_path / "older.safetensors", tower=json.dumps(older))).config == CONFIG
    assert (TOWER.mean, TOWER.std) == (CLIP_MEAN, CLIP_STD)


def test_the_name_of_the_file_does_not_matter(tmp_path):
    save(tmp_path / "sdxl_lora.ckpt", encoder(), step=7)
    assert read_header(tmp_path / "sdxl_lora.ckpt").config == CONFIG


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_the_file_is_readable_by_whom_the_user_lets(tmp_path):
    before = os.umask(0o022)
    try:
        save(tmp_path / NAME, encoder(), step=0)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o644


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, broken):
    save(tmp_path / NAME, encoder(seed=1), step=1)
    before = (tmp_path / NAME).read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, broken, fail)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path / NAME, encoder(seed=2), step=2)
    assert (tmp_path / NAME).read_bytes() == before
    assert os.listdir(tmp_path) == [NAME]
    save(tmp_path / NAME, encoder(seed=2), step=2)
    assert read_header(tmp_path / NAME).step == 2
    assert os.listdir(tmp_path) == [NAME]


def test_the_target_is_never_half_written(tmp_path, monkeypatch):
    """At the moment of replacing, the new file is whole under another name beside the old one."""
    save(tmp_path / NAME, encoder(seed=1), step=1)
    replaced, steps = os.replace, []

    def watch(source, target):
        steps.append((read_header(target).step, read_header(source).step))
        replaced(source, target)

    monkeypatch.setattr(os, "replace", watch)
    save(tmp_path / NAME, encoder(seed=2), step=2)
    assert steps == [(1, 2)]


def test_a_pickled_file(tmp_path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / NAME)
    assert "is a pickled checkpoint" in refusal(tmp_path / NAME)
    torch.save({"weight": torch.zeros(3)}, tmp_path / NAME, _use_new_zipfile_serialization=False)
    assert "is a pickled checkpoint" in refusal(tmp_path / NAME)


@pytest.mark.parametrize(
    "content, told",
    [
        (b"GGUF\x03\x00\x00\x00" + bytes(64), "a GGUF file"),
        (b"<!DOCTYPE html><html>" + b" " * 64, "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"", "damaged, cut short"),
        (b"\xff" * 64, "damaged, cut short"),
    ],
)
def test_other_files(tmp_path, content, told):
    (tmp_path / NAME).write_bytes(content)
    assert told in refusal(tmp_path / NAME)


def test_a_file_cut_short(tmp_path):
    write(tmp_path / NAME)
    whole = (tmp_path / NAME).read_bytes()
    for length in (5, 300, len(whole) - 1):
        (tmp_path / NAME).write_bytes(whole[:length])
        assert "damaged, cut short" in refusal(tmp_path / NAME)


def test_no_file(tmp_path):
    assert "cannot be read (No such file" in refusal(tmp_path / NAME)


@pytest.mark.parametrize(
    "key, told",
    [
        ("lora_unet_down_blocks_0.lora_up.weight", "a LoRA"),
        ("model.diffusion_model.input_blocks.0.0.weight", "a diffusion checkpoint"),
        ("image_proj.proj.weight", "an IP-Adapter"),
        ("text_model.embeddings.position_ids", "a text encoder"),
        ("emb_params", "a textual-inversion embedding"),
        ("visual.conv1.weight", "a CLIP image encoder"),
        ("weight", "does not say that it is a pivot encoder"),
    ],
)
def test_safetensors_of_something_else(tmp_path, key, told):
    save_file({key: torch.zeros(2)}, tmp_path / NAME)
    assert told in refusal(tmp_path / NAME)


def test_a_newer_version(tmp_path):
    told = refusal(write(tmp_path / NAME, format_version="2"))
    assert "format version 2" in told and "update" in told
