"""IC-Portrait's file: what is written is read, and what is no such file is refused in one sentence."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from ic_files import SHAPE, metadata, nets, written
from omniportrait.models.ic.file import ICHeader, load, read_header, save
from omniportrait.models.ic.handle import load_handle
from omniportrait.models.ic.nets import Shape
from safetensors.torch import save_file

NAME = "ic.safetensors"


def shape(**changed) -> str:
    return json.dumps(asdict(SHAPE) | changed)


HOSTILE = {
    "another format": (dict(format="flux"), "omniportrait-ic-portrait"),
    "version of tomorrow": (dict(format_version="2"), "update"),
    "no shape": (dict(shape=None), "shape"),
    "deep shape": (dict(shape="[" * 9000), "shape"),
    "unknown field": (dict(shape=shape(code="x")), "an object with"),
    "channels huge": (dict(shape=shape(model_channels=10**9)), "shape.model_channels"),
    "channels odd": (dict(shape=shape(model_channels=40)), "multiple of 32"),
    "channels boolean": (dict(shape=shape(model_channels=True)), "shape.model_channels"),
    "levels endless": (dict(shape=shape(channel_mult=[1] * 99, num_res_blocks=[1] * 99)), "levels"),
    "no levels": (dict(shape=shape(channel_mult=[], num_res_blocks=[], transformer_depth=[])), "levels"),
    "blocks huge": (dict(shape=shape(num_res_blocks=[1, 10**6])), "shape.num_res_blocks"),
    "depth of other blocks": (dict(shape=shape(transformer_depth=[0])), "levels"),
    "depth huge": (dict(shape=shape(transformer_depth=[0, 10**6])), "shape.transformer_depth"),
    "heads twice": (dict(shape=shape(num_head_channels=8)), "num_heads"),
    "no heads": (dict(shape=shape(num_heads=-1)), "num_heads"),
    "heads zero": (dict(shape=shape(num_heads=0)), "num_heads"),
    "heads that do not divide": (dict(shape=shape(num_heads=3)), "num_heads"),
    "linear a number": (dict(shape=shape(use_linear_in_transformer=1)), "use_linear_in_transformer"),
    "matching of more levels than there are": (dict(matching_levels="6"), "matching_levels"),
    "matching of all": (dict(matching_levels="all"), "matching_levels"),
    "context unknown": (dict(context="__import__('os')"), "context"),
    "level outside": (dict(match_level="5"), "match_level"),
    "level negative": (dict(match_level="-1"), "match_level"),
    "light not a number": (dict(light_most="NaN"), "light_most"),
    "light above all": (dict(light_most="1.5"), "light_most"),
    "aggregate of one": (dict(aggregate="0.8"), "aggregate"),
    "aggregate below nothing": (dict(aggregate="[-1, 0.2]"), "aggregate"),
    "flow unknown": (dict(flow="layers"), "flow"),
    "crop of one": (dict(crop="[2.0]"), "crop"),
    "crop infinite": (dict(crop="[2.0, Infinity]"), "crop"),
    "resolution endless": (dict(resolution="9" * 99), "resolution"),
    "step of another script": (dict(training_step="\u0661"), "training_step"),
    "matched by a level that is not there": (dict(matching_levels="3"), "match_level"),
    "a net that is missing": (dict(matching_levels="0"), "does not fit its own header"),
}


def refusal(path, read=read_header) -> str:
    with pytest.raises(ValueError) as caught:
        read(path)
    sentence = str(caught.value)
    assert sentence.startswith(path.name) and sentence.endswith(".")
    assert ". " not in sentence and "\n" not in sentence and len(sentence) < 450
    return sentence


def test_hostile_headers_are_refused_before_a_tensor_is_read(tmp_path, monkeypatch):
    weights = dict(nets().state_dict())
    for number, (name, (changed, told)) in enumerate(HOSTILE.items()):
        path = tmp_path / f"{number}.safetensors"
        save_file(weights, path, metadata(**changed))
        assert told in refusal(path), name


def test_files_of_another_kind_say_what_they_are(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(b"PK\x03\x04" + b"x" * 40)
    assert "pickled checkpoint" in refusal(path)
    save_file({"control_model.input_blocks.0.0.weight": torch.zeros(1)}, path)
    assert "looks like a ControlNet" in refusal(path)
    save_file({"a": torch.zeros(1)}, path)
    assert "does not say that it is IC-Portrait's nets" in refusal(path)


def test_weights_that_do_not_fit_or_are_not_finite(tmp_path):
    path, weights = tmp_path / NAME, dict(nets().state_dict())
    save_file({name: value for name, value in weights.items() if name != "appearance.zero.0.bias"}, path, metadata())
    assert "appearance.zero.0.bias" in refusal(path)
    save_file(weights | {"appearance.zero.0.bias": torch.zeros(32, dtype=torch.int8)}, path, metadata())
    assert "I8" in refusal(path)
    save_file(weights | {"appearance.zero.0.bias": torch.full((32,), torch.nan)}, path, metadata())
    assert read_header(path).step == 7 and "not finite" in refusal(path, load)


@pytest.mark.parametrize("levels", [5, 3, 0])
def test_what_is_written_is_read(tmp_path, levels):
    made = nets(levels=levels)
    header = ICHeader(SHAPE, levels, "empty", 2, 0.15, (0.5, 0.5), "none", (1.2, 1.5), 256, 11)
    save(tmp_path / NAME, made, header, torch.float32, {"why": "a test"})
    found, told = load(tmp_path / NAME)
    assert told == header and read_header(tmp_path / NAME) == header
    assert found.state_dict().keys() == made.state_dict().keys()
    condition, context = torch.randn(2, 4, 8, 16), torch.randn(2, 3, 16)
    times = torch.tensor([10.0, 500.0])
    pairs = zip(found.appearance(condition, times, context, {}), made.appearance(condition, times, context, {}),
                strict=True)  # fmt: skip
    assert all(torch.equal(one, two) for one, two in pairs)
    handle = load_handle(str(tmp_path / NAME))
    assert (handle.matching is not None) == bool(levels)
    with pytest.raises(ValueError, match=r"32, 64 channels, .* but this one has 64, 128 channels"):
        handle.check(asdict(SHAPE) | {"model_channels": 64})
    handle.check(asdict(SHAPE))


def test_blocks_behind_the_matched_level_can_be_left_out(tmp_path):
    whole = nets()
    save(tmp_path / NAME, whole, ICHeader(SHAPE, 3, match_level=2), torch.float32)
    found, _ = load(tmp_path / NAME)
    condition, times, context = torch.randn(1, 4, 8, 16), torch.tensor([10.0]), torch.randn(1, 3, 16)
    features, all_of_them = (each.matching(condition, times, context, {}) for each in (found, whole))
    assert len(features) == 3 and all(map(torch.equal, features, all_of_them[:3]))
    assert not [name for name in found.state_dict() if name.startswith("matching.middle")]


def test_a_trunk_is_the_unets_own_encoder(sd15):
    """Features against what ComfyUI's own pass leaves at each block."""
    import comfy.ops
    from omniportrait.models.ic.nets import ICNets

    unet = sd15.model.diffusion_model
    own = Shape.of(sd15.model.model_config.unet_config)
    made = ICNets(own, comfy.ops.disable_weight_init, device="meta")
    made.begin_with(unet)
    seen = []
    patches = {"patches": {"input_block_patch": [lambda h, _: (seen.append(h.clone()), h)[1]]}}
    x, times, context = torch.randn(1, 4, 8, 16), torch.tensor([300.0]), torch.randn(1, 7, own.context_dim)
    with torch.inference_mode():
        unet(x, times, context=context, transformer_options=patches)
    with torch.no_grad():
        features = made.matching(x, times, context, {})
    assert tuple(each.shape[1] for each in features) == own.widths and len(features) == len(seen) + 1
    for ours, theirs in zip(features, seen, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert not any(each.any() for each in made.appearance.residuals(features))
    assert all(weight.requires_grad for weight in made.parameters())


def test_a_file_is_written_whole(tmp_path):
    path = written(tmp_path / NAME)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
