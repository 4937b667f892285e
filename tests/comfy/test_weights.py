"""Weights as people have them: half precision, 8 bit, partly offloaded, with LoRAs.

Every private pass is held against ComfyUI's own forward with the same weights.
"""

from __future__ import annotations

import comfy.hooks
import comfy.model_patcher
import comfy.sd
import pytest
import torch
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import assert_effective, assert_guided, footprint, watched
from parameters import all_pairs, in_turn

DTYPES = {
    "ordinary tensors": ({"inference": False}, 1e-4),
    "fp16, computed in fp32": ({"dtype": torch.float16, "manual_cast": torch.float32}, 1e-4),
    "fp8, computed in fp32": ({"dtype": torch.float8_e4m3fn, "manual_cast": torch.float32}, 1e-4),
    "fp8, computed in bf16": ({"dtype": torch.float8_e5m2, "manual_cast": torch.bfloat16}, 0.05),
    "bf16": ({"dtype": torch.bfloat16}, 0.05),
    "fp16": ({"dtype": torch.float16}, 0.01),
}
"""Options of the model and the tolerance of the features: in half precision a row alone rounds unlike in a batch."""
TWO_CALLS = {"sigmas": torch.tensor([1.5, 0.5, 0.0]), "steps": 2}
"""Both inside the window; half precision is slow on a CPU."""


@pytest.mark.slow
@in_turn(kind=list(DTYPES), shape=["sd15", "sdxl"], checkpointing=["off", "on"])
def test_dtypes(vae, shape, kind, checkpointing):
    options, tolerance = DTYPES[kind]
    model = getattr(small, shape)(**options)
    positive = small.annotated(model)
    plain = small.sample(model, positive, **TWO_CALLS)
    before = footprint(model)
    settings = {"checkpointing": checkpointing}
    picture, trace = watched(model, vae, positive, tolerance=tolerance, settings=settings, **TWO_CALLS)
    assert_guided(trace, calls=2)
    assert_effective(picture, plain)
    assert torch.equal(small.sample(model, positive, **TWO_CALLS), plain)
    assert footprint(model) == before


class HalfLoaded(comfy.model_patcher.ModelPatcher):
    """A card with room for half of the model: the rest is cast layer by layer, as ComfyUI does in low VRAM."""

    def partially_load(self, device_to, extra_memory=0, force_patch_weights=False, **kwargs):
        room = max(self.model_size() // 2 - self.loaded_size(), 0)
        return super().partially_load(device_to, room, force_patch_weights, **kwargs)


def half_loaded(model):
    model.__class__ = HalfLoaded
    return model


def with_lora(model, strength=1.0, seed=0):
    return comfy.sd.load_lora_for_models(model, None, small.lora(model, seed), strength, 0)[0]


@all_pairs(checkpointing=["off", "on"], lora=[False, True], cast=[False, True])
def test_low_vram(sd15, vae, lora, cast, checkpointing):
    model = half_loaded(small.sd15(dtype=torch.float16, manual_cast=torch.float32) if cast else sd15)
    model = with_lora(model) if lora else model
    positive = small.annotated(model)
    plain = small.sample(model, positive)
    assert model.model.model_lowvram
    assert (model.lowvram_patch_counter() > 0) == lora if hasattr(model, "lowvram_patch_counter") else True
    picture, trace = watched(model, vae, positive, settings={"checkpointing": checkpointing})
    assert_guided(trace)
    assert_effective(picture, plain)
    assert torch.equal(small.sample(model, positive), plain)


def test_low_vram_is_the_whole_model(vae):
    """Offloading half of the weights changes where they are, not what comes out."""
    results = []
    for prepare in (lambda m: m, half_loaded):
        model = prepare(small.sd15())
        results.append(watched(model, vae, small.annotated(model)))
        assert_guided(results[-1][1])
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-3)


def test_lora_comes_and_goes(family, vae):
    """Loading a LoRA makes new inference tensors of the patched weights; unloading it brings the old ones back."""
    positive = small.annotated(family)
    bare = small.sample(family, positive)
    model = with_lora(family)
    plain = small.sample(model, positive)
    assert_effective(plain, bare)
    picture, trace = watched(model, vae, positive)
    assert_guided(trace)
    assert_effective(picture, plain)
    assert torch.equal(small.sample(model, positive), plain)
    assert torch.equal(small.sample(family, positive), bare)
    without, trace = watched(family, vae, positive)
    assert_guided(trace)
    assert not torch.allclose(without, picture, rtol=1e-3, atol=1e-3)
    assert torch.equal(watched(model, vae, positive)[0], picture)


def test_two_loras_have_reference_features_of_their_own(sd15, vae):
    """The cache tells weights apart: a warm cache of one LoRA never serves another."""
    positive = small.annotated(sd15)
    first, second = with_lora(sd15, seed=1), with_lora(sd15, seed=2)
    cold = watched(second, vae, positive)[0]
    watched(first, vae, positive)
    assert torch.equal(watched(second, vae, positive)[0], cold)


@pytest.mark.parametrize("where", ["the person", "the other entry", "the negative"])
def test_lora_as_a_hook_on_one_conditioning(sd15, vae, where):
    """Hooks rewrite weights between the calls of one step; the guided pass runs on those of its own conditioning."""
    hooks = comfy.hooks.create_hook_lora(small.lora(sd15), 1.0, 0.0)
    positive, other, negative = small.annotated(sd15), small.conditioning(sd15, 7), small.conditioning(sd15, 2)
    conds = {"the person": positive, "the other entry": other, "the negative": negative}
    conds[where] = comfy.hooks.set_hooks_for_conditioning(conds[where], hooks)
    both, negative = conds["the person"] + conds["the other entry"], conds["the negative"]
    bare = small.sample(sd15, positive + other, negative=small.conditioning(sd15, 2))
    # ComfyUI's hooks need this method, which the prompt's execution calls on the model once.
    model = sd15.clone()
    model.register_all_hook_patches(hooks, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model))
    plain = small.sample(model, both, negative=negative)
    assert_effective(plain, bare)
    picture, trace = watched(model, vae, both, negative=negative)
    assert_guided(trace)
    assert_effective(picture, plain)
    assert torch.equal(small.sample(model, both, negative=negative), plain)
    assert torch.equal(small.sample(sd15, positive + other), bare)
