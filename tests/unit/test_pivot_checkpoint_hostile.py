"""Headers and weights that are no pivot encoder's, whatever they pretend: one sentence, and nothing is run."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omniportrait.models.pivot import file as pivot_checkpoint
from omniportrait.models.pivot.file import PivotHeader, load, read_header
from pivot_files import NAME, TOWER, encoder, metadata, refusal, tower, write

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
