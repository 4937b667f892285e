"""The pivot encoder's file: what goes in comes out, and whatever else it may be is refused in one sentence."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omniportrait.models.pivot import file as pivot_checkpoint
from omniportrait.models.pivot.encoder import CLIP_MEAN, CLIP_STD, PivotConfig, PivotEncoder, TowerConfig
from omniportrait.models.pivot.file import PivotHeader, load, read_header, save
from safetensors import safe_open
from safetensors.torch import save_file

TOWER = TowerConfig(image_size=28, patch_size=14, width=16, layers=1, head_width=8, mlp_ratio=1.5, quick_gelu=True)
CONFIG = PivotConfig("generic", (8, 12), TOWER, "mlp")
NAME = "portrait.safetensors"


def encoder(config: PivotConfig = CONFIG, seed: int = 0) -> PivotEncoder:
    torch.manual_seed(seed)
    made = PivotEncoder(config)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight))
    return made


def metadata(**changed: str | None) -> dict[str, str]:
    """The header of CONFIG as the file format's description says, written by hand."""
    told = {
        "format": "omniportrait-pivot-encoder",
        "format_version": "1",
        "base_family": "generic",
        "text_dims": "[8, 12]",
        "tower": json.dumps(asdict(TOWER)),
        "fusion": "mlp",
        "training_step": "7",
    }
    return {key: value for key, value in (told | changed).items() if value is not None}


def tower(**changed) -> str:
    return json.dumps(asdict(TOWER) | changed)


def write(path, weights: dict[str, torch.Tensor] | None = None, **changed: str | None):
    save_file(dict(encoder().state_dict()) if weights is None else weights, path, metadata(**changed))
    return path


def refusal(path, read=read_header) -> str:
    """The sentence with which the file is refused: one, with its name, no traceback's language."""
    with pytest.raises(ValueError) as caught:
        read(path)
    sentence = str(caught.value)
    assert sentence.startswith(path.name) and sentence.endswith(".")
    assert ". " not in sentence and "\n" not in sentence
    return sentence


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


HOSTILE = {
    "no version": (dict(format_version=None), "format_version"),
    "version 0": (dict(format_version="0"), "format_version"),
    "version not a number": (dict(format_version="1.0"), "format_version"),
    "digits of another script": (dict(training_step="\u0661"), "training_step"),
    "endless step": (dict(training_step="9" * 5000), "training_step"),
    "negative step": (dict(training_step="-1"), "training_step"),
    "unknown family": (dict(base_family="flux"), "base_family"),
    "family of other widths": (dict(base_family="sd15"), "text widths of sd15"),
    "unknown fusion": (dict(fusion="__import__('os')"), "fusion"),
    "dims no JSON": (dict(text_dims="(8, 12)"), "text_dims"),
    "dims missing": (dict(text_dims=None), "text_dims"),
    "dims no list": (dict(text_dims='{"0": 8}'), "text_dims"),
    "dims empty": (dict(text_dims="[]"), "text_dims"),
    "too many dims": (dict(text_dims="[8, 8, 8, 8]"), "text_dims"),
    "dims huge": (dict(text_dims="[1000000000000]"), "text_dims"),
    "dims negative": (dict(text_dims="[-8, 12]"), "text_dims"),
    "dims boolean": (dict(text_dims="[true, 12]"), "text_dims"),
    "dims fractions": (dict(text_dims="[8.0, 12]"), "text_dims"),
    "deep nesting": (dict(text_dims="[" * 9000), "text_dims"),
    "long JSON": (dict(text_dims="[8, 12" + " " * 20000 + "]"), "text_dims"),
    "tower no object": (dict(tower="[]"), "tower must be an object"),
    "unknown field": (dict(tower=tower(code="x")), "tower must be an object"),
    "missing field": (dict(tower='{"width": 16}'), "tower must be an object"),
    "width huge": (dict(tower=tower(width=10**9)), "tower.width"),
    "layers huge": (dict(tower=tower(layers=100000)), "tower.layers"),
    "layers zero": (dict(tower=tower(layers=0)), "tower.layers"),
    "layers text": (dict(tower=tower(layers="1")), "tower.layers"),
    "layers boolean": (dict(tower=tower(layers=True)), "tower.layers"),
    "layers a fraction": (dict(tower=tower(layers=1.0)), "tower.layers"),
    "picture huge": (dict(tower=tower(image_size=10**6)), "tower.image_size"),
    "too many patches": (dict(tower=tower(image_size=1024, patch_size=2)), "tower.patch_size"),
    "patch over picture": (dict(tower=tower(image_size=8)), "tower.patch_size"),
    "ratio not a number": (dict(tower=tower(mlp_ratio=float("nan"))), "tower.mlp_ratio"),
    "ratio infinite": (dict(tower=tower(mlp_ratio=float("inf"))), "tower.mlp_ratio"),
    "width no multiple": (dict(tower=tower(width=20)), "tower.width must be a multiple"),
    "activation a number": (dict(tower=tower(quick_gelu=1)), "tower.quick_gelu"),
    "mean of two": (dict(tower=tower(mean=[0.5, 0.5])), "tower.mean must be three numbers"),
    "mean no list": (dict(tower=tower(mean=0.5)), "tower.mean must be three numbers"),
    "mean not a number": (dict(tower=tower(mean=[0.5, 0.5, float("nan")])), "tower.mean must be three numbers"),
    "mean boolean": (dict(tower=tower(mean=[True, 0.5, 0.5])), "tower.mean must be three numbers"),
    "deviation zero": (dict(tower=tower(std=[0.5, 0.0, 0.5])), "tower.std must be three numbers"),
    "deviation infinite": (dict(tower=tower(std=[float("inf")] * 3)), "tower.std must be three numbers"),
}


@pytest.mark.parametrize("changed, told", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header(tmp_path, changed, told):
    sentence = refusal(write(tmp_path / NAME, **changed))
    assert told in sentence and len(sentence) < 400


def test_a_long_value_is_not_repeated_to_the_user(tmp_path):
    assert len(refusal(write(tmp_path / NAME, base_family="x" * 5000))) < 400
    assert len(refusal(write(tmp_path / NAME, fusion="two\nlines. " * 500))) < 400


def changed_weights(tmp_path, change) -> str:
    weights = dict(encoder().state_dict())
    change(weights)
    return refusal(write(tmp_path / NAME, weights))


def test_weights_that_do_not_fit_the_header(tmp_path):
    def other_shape(weights):
        weights["projections.1.weight"] = torch.zeros(12, 17)

    def missing(weights):
        del weights["fusion.outer.bias"]

    def surplus(weights):
        weights["fusion.third.weight"] = torch.zeros(2)

    assert "projections.1.weight should be [12, 16] but the file has [12, 17]" in changed_weights(tmp_path, other_shape)
    assert "fusion.outer.bias should be [20] but the file has nothing" in changed_weights(tmp_path, missing)
    assert "fusion.third.weight should be absent but the file has [2]" in changed_weights(tmp_path, surplus)


@pytest.mark.parametrize("dtype, told", [(torch.int32, "I32"), (torch.float64, "F64"), (torch.uint8, "U8")])
def test_weights_of_another_type(tmp_path, dtype, told):
    def change(weights):
        weights["tower.conv1.weight"] = weights["tower.conv1.weight"].to(dtype)

    assert f"tower.conv1.weight as {told}" in changed_weights(tmp_path, change)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path, value):
    weights = dict(encoder().state_dict())
    weights["fusion.inner.weight"][0, 0] = value
    write(tmp_path / NAME, weights)
    assert "not finite (fusion.inner.weight)" in refusal(tmp_path / NAME, load)


def test_a_header_is_judged_before_a_weight_is_read(tmp_path, monkeypatch):
    """A huge claim over a small file costs nothing: no module is built."""
    write(tmp_path / NAME, text_dims="[8, 99999]")

    def built(config):
        raise AssertionError("built")

    monkeypatch.setattr(pivot_checkpoint, "PivotEncoder", built)
    assert "text_dims" in refusal(tmp_path / NAME, load)


def test_the_largest_header_that_is_allowed_takes_no_memory(tmp_path):
    """Some 100 GB if it were built; the file has none of it, which is found on the meta device."""
    largest = replace(TOWER, width=4096, layers=64, head_width=64, mlp_ratio=8.0)
    told = refusal(write(tmp_path / NAME, text_dims="[8192, 8192, 8192]", tower=json.dumps(asdict(largest))))
    assert "does not fit its own header" in told


WORDS = st.one_of(
    st.none(),
    st.text(max_size=40),
    st.integers().map(str),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=6,
    ).map(json.dumps),
    st.fixed_dictionaries(
        {key: st.integers(-2, 4100) | st.floats() | st.booleans() for key in asdict(TOWER)},
    ).map(json.dumps),
)
KEYS = ["format", "format_version", "base_family", "text_dims", "tower", "fusion", "training_step"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(KEYS), WORDS, min_size=1, max_size=3))
def test_any_metadata_is_a_header_or_a_sentence(tmp_path, changed):
    path = tmp_path / NAME
    write(path, STATE, **changed)
    try:
        header = read_header(path)
    except ValueError as error:
        assert str(error).startswith(NAME)
    else:
        assert isinstance(header, PivotHeader) and header.step >= 0


STATE = dict(encoder().state_dict())


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_a_header_or_a_sentence(tmp_path, data):
    """Bytes of the header flipped and the file cut anywhere."""
    path = tmp_path / NAME
    content = bytearray(whole())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, 1200))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        load(path)
    except ValueError as error:
        assert str(error).startswith(NAME)


def whole() -> bytes:
    from safetensors.torch import save as serialise

    return serialise(STATE, metadata())
