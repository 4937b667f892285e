"""What cannot work is refused in one sentence that says what to do, and leaves the model as it was."""

from __future__ import annotations

import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from comfy.ldm.flux.model import FluxParams
from comfy_extras import nodes_model_advanced
from omniportrait.guidance.omniportrait.settings import Settings
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import core, footprint, guide, guided
from omniportrait.nodes.rb_guidance import RBGuidance
from omniportrait.nodes.rb_guidance_ksampler import RBGuidanceKSampler
from omniportrait.sampling.people import ByHand

FLUX = dict(
    image_model="flux",
    in_channels=16,
    out_channels=16,
    patch_size=2,
    vec_in_dim=768,
    context_in_dim=64,
    hidden_size=64,
    mlp_ratio=4.0,
    num_heads=2,
    depth=1,
    depth_single_blocks=1,
    axes_dim=[8, 12, 12],
    theta=10000,
    qkv_bias=True,
    guidance_embed=False,
)
DEFAULTS = {"strength": 1.0, "mode": "calibrated", "feature_block": -1}


def flux():
    """A true Flux of one block each, as ComfyUI makes it."""
    newer = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__dataclass_fields__ else {}  # as of 0.33
    config = comfy.supported_models.Flux(dict(FLUX, dtype=torch.float32, **newer))
    config.set_inference_dtype(torch.float32, None)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(config.get_model({}, "", device=device), device, device)


def test_flux_is_refused_by_name(vae):
    with pytest.raises(ValueError, match=r"Stable Diffusion 1\.x, 2\.x or SDXL.*this model is Flux; connect"):
        core(RBGuidance, model=flux(), vae=vae, **DEFAULTS)


def test_a_flow_patch_on_a_good_model_is_refused(sd15, vae):
    (flow,) = core(nodes_model_advanced.ModelSamplingSD3, model=sd15, shift=3.0)
    with pytest.raises(ValueError, match="samples another way; remove the flow patch"):
        core(RBGuidance, model=flow, vae=vae, **DEFAULTS)


def half_pair(**one):
    return lambda: core(RBGuidance, model=small.sd15(), vae=small.vae(), **DEFAULTS, **one)


MASK = torch.ones(1, 128, 128)
CALLS = {
    "only a face": (half_pair(face_reference=small.face()), "only one of face_reference and mask; connect mask too"),
    "only a mask": (half_pair(mask=MASK), "only one of face_reference and mask; connect face_reference too"),
    "a black mask": (half_pair(face_reference=small.face(), mask=MASK * 0), "mask given to RB-Guidance is empty"),
    "a NaN mask": (half_pair(face_reference=small.face(), mask=MASK * float("nan")), "mask .* is empty"),
    "an unknown mode": (lambda: Settings().in_mode("liberal"), "no mode 'liberal'; choose calibrated or literal"),
    "an unknown reduction": (lambda: Settings(reduction="max"), "no reduction 'max'; choose mean or sum"),
    "an unknown refinement": (lambda: Settings(refinement="both"), "no refinement 'both'; choose outer or inner"),
    "an unknown checkpointing": (lambda: Settings(checkpointing="yes"), "no checkpointing 'yes'; choose auto or on"),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_the_node_refuses(name):
    call, sentence = CALLS[name]
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize("name, text", [("mode", "liberal"), ("reduction", "max")])
def test_texts_that_core_lets_through_reach_our_check(sd15, vae, name, text):
    with pytest.raises(ValueError, match=f"no {name} '{text}'"):
        core(RBGuidance, model=sd15, vae=vae, **DEFAULTS | {name: text})


def test_neither_of_the_pair_is_fine():
    assert ByHand.given(None, None) is None


def nobody(model):
    return small.conditioning(model, 1)


RUNS = {
    "no record": (nobody, small.vae, {}, "connect Pivot Conditioning"),
    "a VAE of 16 channels": (small.annotated, lambda: small.vae(16), {}, "latents of 16 channels .* samples 4"),
    "a block too high": (small.annotated, small.vae, {"block": 99}, "Feature block 99 does not exist .* 0 to"),
}


@pytest.mark.parametrize("name", RUNS)
def test_what_a_run_refuses(family, vae, name):
    """These show only when the sampler starts; the next runs on the same model are as if nothing had been."""
    conditioning, make_vae, settings, sentence = RUNS[name]
    positive = small.annotated(family)
    plain = small.sample(family, positive, steps=2)
    expected, _ = guided(family, vae, positive, steps=2)
    before = footprint(family)
    patched, traces = guide(family, make_vae(), **settings)
    left = footprint(patched)
    with pytest.raises(ValueError, match=sentence):
        small.sample(patched, conditioning(family), steps=2)
    assert not traces
    assert footprint(family) == before and footprint(patched) == left
    assert torch.equal(small.sample(family, positive, steps=2), plain)
    assert torch.equal(guided(family, vae, positive, steps=2)[0], expected)


def test_a_checkpoint_without_vae_is_refused(sd15):
    with pytest.raises(ValueError, match="holds no VAE"):
        guide(sd15, None)


def test_every_block_that_exists_is_accepted(sd15, vae):
    """The other side of the range."""
    last = len(sd15.model.diffusion_model.output_blocks) - 1
    for block in (3, last):
        _, trace = guided(sd15, vae, small.annotated(sd15), settings={"block": block}, steps=2)
        assert trace.steps and not trace.skipped, trace.summary()
    with pytest.raises(ValueError, match=f"0 to {last}"):
        guided(sd15, vae, small.annotated(sd15), settings={"block": last + 1}, steps=2)


def test_a_reference_mask_that_vanishes_is_refused_kindly(sd15, vae):
    """One painted pixel covers no half of any feature: there would be nothing to match."""
    record = small.record(sd15)
    record.face.mask.zero_()[0, 64, 64] = 1
    tensor, options = small.conditioning(sd15, 1)[0]
    positive = [[tensor, options | {small.RECORDS_KEY: (record,)}]]
    plain = small.sample(sd15, positive, steps=2)
    with pytest.raises(ValueError, match="face mask is empty at the model's resolution; connect a mask"):
        guided(sd15, vae, positive, steps=2)
    assert torch.equal(small.sample(sd15, positive, steps=2), plain)


def test_the_samplers_node_refuses_too(sd15, vae):
    inputs = {"seed": 0, "steps": 2, "cfg": 7.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    negative = small.conditioning(sd15, 2)
    inputs |= {"positive": nobody(sd15), "negative": negative, "latent_image": latent}
    with pytest.raises(ValueError, match="connect Pivot Conditioning"):
        core(RBGuidanceKSampler, model=sd15, vae=vae, **inputs, **DEFAULTS)
