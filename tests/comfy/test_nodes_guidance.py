"""Face Mask From Attention, RB-Guidance and RB-Guidance KSampler run as ComfyUI runs them, on core's own objects."""

from __future__ import annotations

import re

import pytest
import torch
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import assert_effective, core, footprint
from omniportrait.nodes.face_mask_from_attention import FaceMaskFromAttention
from omniportrait.nodes.rb_guidance import RBGuidance
from omniportrait.nodes.rb_guidance_ksampler import RBGuidanceKSampler
from parameters import all_pairs, in_turn

import nodes

GUIDANCE = {"strength": 1.0, "mode": "calibrated", "feature_block": -1}
SAMPLING = {"seed": 3, "steps": 4, "cfg": 7.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
SEARCH = {"seed": 7, "percent": 0.4, "gamma": 2, "alpha": 1.5, "beta": 0.5, "person": 0, "sigma": 0.0}


def latent(size=(16, 24), batch=1) -> dict:
    return {"samples": torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(4))}


def find(model, positive, **changed) -> tuple[torch.Tensor, torch.Tensor]:
    return core(
        FaceMaskFromAttention,
        **{"model": model, "conditioning": positive, "latent": latent(), "refinement": "outer"} | SEARCH | changed,
    )


def sample(node, model, positive, **changed) -> tuple:
    negative = small.conditioning(model, 2)
    inputs = {"model": model, "positive": positive, "negative": negative, "latent_image": latent((16, 16))}
    return core(node, **inputs | SAMPLING | changed)


def two(model) -> list:
    tensor, options = small.conditioning(model, 1)[0]
    records = small.record(model, token=5), small.record(model, token=9, seed=1)
    return [[tensor, options | {small.RECORDS_KEY: records}]]


@all_pairs(family=["sd15", "sdxl"], batch=[1, 2], refinement=["outer", "inner"])
def test_mask_and_heat_map(family, batch, refinement):
    """A mask of zeros and ones and a picture of the map, both of the picture's size; the same again for the seed."""
    positive, where = small.annotated(family), latent(batch=batch)
    mask, heat = find(family, positive, latent=where, refinement=refinement)
    assert mask.shape == (batch, 128, 192) and heat.shape == (batch, 128, 192, 3)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert 0 <= heat.min() and heat.max() <= 1 and heat.std() > 0.01
    again, heat_again = find(family, positive, latent=where, refinement=refinement)
    assert torch.equal(mask, again) and torch.equal(heat, heat_again)


def test_what_the_search_depends_on(sd15):
    """Seed, percent and word change the map; beta changes the mask only, and a higher one draws it tighter."""
    positive = small.annotated(sd15)
    mask, heat = find(sd15, positive)
    for changed in ({"seed": 8}, {"percent": 0.7}, {"sigma": 5.0}, {"alpha": 3.0}):
        assert not torch.equal(find(sd15, positive, **changed)[1], heat), changed
    assert not torch.equal(find(sd15, small.annotated(sd15, token=9))[1], heat)
    tighter, same = find(sd15, positive, beta=0.9)
    assert torch.equal(same, heat) and 0 < tighter.sum() < mask.sum()


def test_percent_is_a_sigma_of_the_model(sd15):
    sigma = float(sd15.get_model_object("model_sampling").percent_to_sigma(0.4))
    positive = small.annotated(sd15)
    by_percent, by_sigma = find(sd15, positive), find(sd15, positive, percent=0.0, sigma=sigma)
    assert torch.equal(by_percent[0], by_sigma[0]) and torch.equal(by_percent[1], by_sigma[1])


@in_turn(family=["sd15", "sdxl"], percent=[0.0, 1.0])
def test_both_ends_of_the_sampling(family, percent):
    """ComfyUI's own percents end at an infinite sigma and at 0."""
    mask, heat = find(family, small.annotated(family), percent=percent)
    assert mask.isfinite().all() and heat.isfinite().all() and heat.std() > 0


def test_the_search_leaves_no_trace(family):
    """Neither on the model nor on the global random state, and plain runs are as before."""
    positive = small.annotated(family)
    plain = small.sample(family, positive)
    before = footprint(family)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    mask, _ = find(family, positive)
    assert mask.any()
    assert torch.equal(torch.get_rng_state(), state)
    assert footprint(family) == before
    assert torch.equal(small.sample(family, positive), plain)


def test_each_person_and_everybody(sd15):
    positive = two(sd15)
    everybody, first, second = (find(sd15, positive, person=person, beta=0.3)[0] for person in (0, 1, 2))
    assert first.any() and second.any() and not (first * second).any()
    assert torch.equal(everybody, torch.maximum(first, second))


@in_turn(family=["sd15", "sdxl"], top=[0, 64])
def test_a_person_in_an_area_is_found_inside_it(family, top):
    """The rows cover the area only; their map goes back where the area is, and the rest stays dark."""
    area = {"width": 192, "height": 64, "x": 0, "y": top, "strength": 1.0}
    (positive,) = core(nodes.ConditioningSetArea, conditioning=small.annotated(family), **area)
    mask, heat = find(family, positive + small.conditioning(family, 7))
    inside, outside = slice(top, top + 64), slice(72, 128) if top == 0 else slice(0, 56)  # resizing blurs the edge
    assert mask[:, inside].any() and not mask[:, outside].any()
    assert heat[:, inside].std() > 0.01 and heat[:, outside].std(dim=(1, 2)).max() == 0


def test_a_person_who_is_not_there(sd15):
    with pytest.raises(ValueError, match="no person 3: the conditioning names 2; choose 1 to 2, or 0 for everyone"):
        find(sd15, two(sd15), person=3)


def test_the_search_needs_somebody(sd15):
    with pytest.raises(ValueError, match="connect Pivot Conditioning"):
        find(sd15, small.conditioning(sd15, 1))


def test_a_latent_of_another_family(sd15):
    with pytest.raises(ValueError, match=r"works on pictures of 4 channels; connect a latent made for this model"):
        find(sd15, small.annotated(sd15), latent={"samples": torch.zeros(1, 16, 16, 16)})


def test_a_timestep_range_that_ends_before(sd15):
    early = core(nodes.ConditioningSetTimestepRange, conditioning=small.annotated(sd15), start=0.0, end=0.2)[0]
    with pytest.raises(ValueError, match="timestep range ends before; choose another percent or sigma"):
        find(sd15, early)


def test_the_search_sees_what_the_guidance_sees(sd15, vae):
    """On a model that RB-Guidance has patched, too: nothing is guided while looking."""
    positive = small.annotated(sd15)
    (patched,) = core(RBGuidance, model=sd15, vae=vae, **GUIDANCE)
    for a, b in zip(find(sd15, positive), find(patched, positive), strict=True):
        assert torch.equal(a, b)


@pytest.mark.quick
def test_ksampler_with_guidance(family, vae):
    """Latent, last mask and plot; the same as KSampler on a patched model, and as itself when queued again."""
    positive = small.annotated(family)
    (plain,) = sample(nodes.KSampler, family, positive)
    before = footprint(family)
    result, mask, trace, report = sample(RBGuidanceKSampler, family, positive, vae=vae, **GUIDANCE)
    assert_effective(result["samples"], plain["samples"])
    assert mask.shape == (1, 128, 128) and 0 < mask.sum() < mask.numel()
    assert re.match(r"RB-Guidance: (\d) of \1 calls guided; S 0", report)
    assert trace.ndim == 4 and trace.shape[0] == 1 and trace.shape[-1] == 3 and 0 <= trace.min() and trace.max() <= 1
    (patched,) = core(RBGuidance, model=family, vae=vae, **GUIDANCE)
    assert torch.equal(sample(nodes.KSampler, patched, positive)[0]["samples"], result["samples"])
    again = sample(RBGuidanceKSampler, family, positive, vae=vae, **GUIDANCE)
    assert torch.equal(again[0]["samples"], result["samples"])
    assert torch.equal(again[1], mask) and torch.equal(again[2], trace)
    assert footprint(family) == before
    assert torch.equal(sample(nodes.KSampler, family, positive)[0]["samples"], plain["samples"])


@pytest.mark.parametrize("off", [{"strength": 0.0}, {"u": 0.0}, {"start_percent": 0.7, "end_percent": 0.7}])
def test_ksampler_switched_off_is_ksampler(sd15, vae, off):
    """Bit-equal, with an empty mask and a plot that says so; no identity is needed then."""
    positive = small.conditioning(sd15, 1)
    (plain,) = sample(nodes.KSampler, sd15, positive)
    result, mask, trace, report = sample(RBGuidanceKSampler, sd15, positive, vae=vae, **GUIDANCE | off)
    assert torch.equal(result["samples"], plain["samples"])
    assert mask.shape == (1, 128, 128) and not mask.any()
    assert trace.shape[-1] == 3 and report.startswith("RB-Guidance: off")


def test_ksampler_keeps_the_latents_other_entries(sd15, vae):
    """Batch of two with a noise mask, as core's KSampler hands it on."""
    noise_mask = torch.ones(1, 128, 128)
    inputs = latent((16, 16), batch=2) | {"noise_mask": noise_mask}
    result, mask, *_ = sample(
        RBGuidanceKSampler, sd15, small.annotated(sd15), vae=vae, latent_image=inputs, **GUIDANCE | {"denoise": 0.5}
    )
    assert result["samples"].shape == (2, 4, 16, 16) and torch.equal(result["noise_mask"], noise_mask)
    assert mask.shape == (2, 128, 128)


@pytest.mark.slow
def test_modes_and_advanced_inputs_reach_the_run(sd15, vae):
    """Each input changes the picture, so none is dropped between the node and the run."""
    positive = small.annotated(sd15)
    pictures = [sample(RBGuidanceKSampler, sd15, positive, vae=vae, **GUIDANCE)[0]["samples"]]
    changes = [
        {"mode": "literal"},
        {"strength": 0.5},
        {"feature_block": 3},
        {"t0": 300},
        {"clip": 0.03, "gain": 4000.0},  # where the cap binds, 0.05 would equal a strength of 0.5
        {"gain": 400.0, "clip": 0.0},
        {"reduction": "sum"},
        {"background_masking": False},
        {"reference_seed": 9},
        {"ensemble": 1},
        {"beta": 0.9},
        {"sigma_scale": True},
        {"every": 1},
        {"start_percent": 0.7},
        {"end_percent": 0.7},
        {"curve": "fade in"},
        {"curve": "fade out"},
    ]
    for change in changes:
        picture = sample(RBGuidanceKSampler, sd15, positive, vae=vae, **GUIDANCE | change)[0]["samples"]
        assert not any(torch.equal(picture, other) for other in pictures), change
        pictures.append(picture)


def test_by_hand_through_the_node(sd15, vae):
    mask = torch.zeros(1, 128, 128)
    mask[..., :64] = 1
    positive = small.conditioning(sd15, 1)
    (plain,) = sample(nodes.KSampler, sd15, positive)
    (patched,) = core(RBGuidance, model=sd15, vae=vae, face_reference=small.face(), mask=mask, **GUIDANCE)
    (guided,) = sample(nodes.KSampler, patched, positive)
    assert_effective(guided["samples"], plain["samples"])
