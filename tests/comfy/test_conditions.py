"""What people do to a conditioning before sampling: combine, areas, masks, timestep ranges, long prompts, batches."""

from __future__ import annotations

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import assert_effective, assert_guided, change, core, guide, guided
from omniportrait.sampling.conditionings import applies
from omniportrait.sampling.people import ByHand
from omniportrait.sampling.session import COVERED
from parameters import in_turn

import nodes


def upper_half(model, positive):
    """The upper half of a 128 pixel picture."""
    return core(nodes.ConditioningSetArea, conditioning=positive, width=128, height=64, x=0, y=0, strength=1.0)[0]


def test_batch_of_two(sdxl, vae):
    positive = small.annotated(sdxl)
    plain = small.sample(sdxl, positive, batch=2)
    picture, trace = guided(sdxl, vae, positive, batch=2)
    assert_effective(picture, plain)
    assert_guided(trace)
    assert trace.mask_for(picture).shape == (2, 128, 128)
    for before, after in zip(plain, picture, strict=True):
        assert not torch.allclose(before, after, rtol=1e-3, atol=1e-3)


def test_a_batch_is_its_pictures_alone(sd15, vae):
    """The gradient of a batch is each picture's own; only the rounding of batched products differs."""
    positive = small.annotated(sd15)
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(8))
    together, trace = change(sd15, vae, positive, noise=noise, batch=2)
    assert_guided(trace, calls=1)
    alone = torch.cat([change(sd15, vae, positive, noise=noise[i : i + 1])[0] for i in range(2)])
    scale = float(alone.abs().max())
    assert scale > 1e-2
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3 * scale)


def test_combine_guides_the_entry_that_carries_the_person(sd15, vae):
    """ConditioningCombine averages two predictions of equal weight, so half the gradient arrives."""
    person, other = small.annotated(sd15), small.conditioning(sd15, 7)
    (both,) = core(nodes.ConditioningCombine, conditioning_1=person, conditioning_2=other)
    settings = {"clip": 0.0, "gain": 1.0}
    alone, trace = change(sd15, vae, person, settings)
    assert_guided(trace, calls=1)
    halved, trace = change(sd15, vae, both, settings)
    assert_guided(trace, calls=1)
    scale = float(alone.abs().max())
    assert scale > 0
    torch.testing.assert_close(halved * 2, alone, rtol=1e-2, atol=1e-2 * scale)


def test_combine_of_two_entries_with_the_person(sdxl, vae):
    positive = small.annotated(sdxl) + small.annotated(sdxl, seed=9)
    plain = small.sample(sdxl, positive)
    picture, trace = guided(sdxl, vae, positive)
    assert_effective(picture, plain)
    assert_guided(trace)


def test_area_bounds_the_gradient(family, vae):
    """The person's conditioning covers the upper half; the lower half belongs to another one."""
    base = small.conditioning(family, 7)
    positive = upper_half(family, small.annotated(family)) + base
    moved, trace = change(family, vae, positive)
    assert_guided(trace, calls=1)
    mask = trace.steps[0].mask
    assert not mask[8:].any()
    assert moved[:, :, :8].abs().max() > 0
    assert moved[:, :, 8:].abs().max() == 0
    assert moved[0][:, ~mask].abs().max() == 0


def test_area_with_an_offset(sd15, vae):
    area = {"width": 64, "height": 128, "x": 64, "y": 0, "strength": 1.0}
    (right,) = core(nodes.ConditioningSetArea, conditioning=small.annotated(sd15), **area)
    moved, trace = change(sd15, vae, right + small.conditioning(sd15, 7))
    assert_guided(trace, calls=1)
    assert moved[..., 8:].abs().max() > 0
    assert moved[..., :8].abs().max() == 0


def test_areas_in_a_whole_run(sd15, vae):
    positive = upper_half(sd15, small.annotated(sd15)) + small.conditioning(sd15, 7)
    plain = small.sample(sd15, positive)
    picture, trace = guided(sd15, vae, positive)
    assert_effective(picture, plain)
    assert_guided(trace)


@pytest.mark.parametrize("bounds", ["default", "mask bounds"])
def test_masked_conditioning_bounds_the_gradient(sd15, vae, bounds):
    """ConditioningSetMask weights the prediction by a mask; where its weight is 0 the person has no say."""
    mask = torch.zeros(1, 128, 128)
    mask[:, :, :64] = 1
    (left,) = core(
        nodes.ConditioningSetMask, conditioning=small.annotated(sd15), mask=mask, set_cond_area=bounds, strength=1.0
    )
    settings = {"clip": 0.0, "background_masking": False}
    moved, trace = change(sd15, vae, left + small.conditioning(sd15, 7), settings)
    assert len(trace.steps) == 1 and not trace.skipped, trace.summary()
    assert moved[..., :8].abs().max() > 0
    assert moved[..., 8:].abs().max() == 0


def test_timestep_range_that_ends_before_the_window(sd15, vae, caplog):
    """The person's conditioning is used in the first, unguided part only: reported, and the picture is plain."""
    early = core(nodes.ConditioningSetTimestepRange, conditioning=small.annotated(sd15), start=0.0, end=0.3)[0]
    late = core(nodes.ConditioningSetTimestepRange, conditioning=small.conditioning(sd15, 7), start=0.3, end=1.0)[0]
    plain = small.sample(sd15, early + late)
    picture, trace = guided(sd15, vae, early + late, settings={"every": 2})
    assert torch.equal(picture, plain)
    assert sum(trace.skipped.values()) > 0 and not [s for s in trace.steps if s.similarity == s.similarity]
    assert [r for r in caplog.records if r.levelname == "WARNING" and r.name == "omniportrait"]


@pytest.mark.parametrize("every", [1, 2])
def test_timestep_range_that_begins_inside_the_window(sd15, vae, every):
    """Guided while it applies, and only then."""
    early = core(nodes.ConditioningSetTimestepRange, conditioning=small.conditioning(sd15, 7), start=0.0, end=0.7)[0]
    late = core(nodes.ConditioningSetTimestepRange, conditioning=small.annotated(sd15), start=0.7, end=1.0)[0]
    plain = small.sample(sd15, early + late, steps=8)
    picture, trace = guided(sd15, vae, early + late, steps=8, settings={"every": every})
    assert_effective(picture, plain)
    guided_steps = [s.t for s in trace.steps if s.similarity == s.similarity]
    assert guided_steps and max(guided_steps) < 310
    assert sum(trace.skipped.values()) == len(trace.steps) - len(guided_steps) > 0


@pytest.mark.parametrize("every", [1, 3])
def test_timestep_range_that_ends_inside_the_window(sd15, vae, every):
    """A held gradient is not held beyond its person's end."""
    early = core(nodes.ConditioningSetTimestepRange, conditioning=small.annotated(sd15), start=0.0, end=0.7)[0]
    late = core(nodes.ConditioningSetTimestepRange, conditioning=small.conditioning(sd15, 7), start=0.7, end=1.0)[0]
    _, trace = guided(sd15, vae, early + late, steps=8, settings={"every": every})
    guided_steps = [s.t for s in trace.steps if s.similarity == s.similarity]
    assert len(guided_steps) > 1 and min(guided_steps) > 290
    assert trace.skipped == {
        "a person's conditioning does not apply at this timestep": len(trace.steps) - len(guided_steps)
    }


@in_turn(family=["sd15", "sdxl"], tokens=[(77, 154), (154, 77), (77, 231)])
def test_prompts_of_unequal_length(family, vae, tokens):
    """ComfyUI repeats the shorter conditioning to the length of the longer one."""
    positive = small.annotated(family) if tokens[0] == 77 else _long(family, tokens[0])
    negative = small.conditioning(family, 2, tokens=tokens[1])
    plain = small.sample(family, positive, negative=negative)
    picture, trace = guided(family, vae, positive, negative=negative)
    assert_effective(picture, plain)
    assert_guided(trace)


def _long(model, tokens):
    """A person in the second chunk of a long prompt."""
    tensor, options = small.conditioning(model, 1, tokens=tokens)[0]
    record = small.record(model, token=tokens - 70)
    record = record.__class__(**{**record.__dict__, "token_count": tokens})
    return [[tensor, options | {small.RECORDS_KEY: (record,)}]]


def test_repetition_by_the_longer_negative_does_not_move_the_mask(sd15, vae):
    """Repeated keys share out the token's attention; their sum, so the mask, is as with a negative of equal length."""
    positive = small.annotated(sd15)
    masks = []
    for tokens in (77, 154):
        _, trace = change(sd15, vae, positive, negative=small.conditioning(sd15, 2, tokens=tokens))
        assert_guided(trace, calls=1)
        masks.append(trace.steps[0].mask)
    assert torch.equal(*masks)


def test_cfg_one_has_no_negative(sd15, vae):
    """ComfyUI leaves the negative out; the cap is then taken against the noise prediction itself."""
    positive = small.annotated(sd15)
    plain = small.sample(sd15, positive, cfg=1.0)
    picture, trace = guided(sd15, vae, positive, cfg=1.0, settings={"gain": 1e9, "clip": 0.2})
    assert_effective(picture, plain)
    assert_guided(trace)
    for step in trace.steps:
        assert step.share == pytest.approx(0.2, rel=1e-3)


def test_not_square(sdxl, vae):
    positive = small.annotated(sdxl)
    plain = small.sample(sdxl, positive, size=(24, 16))
    picture, trace = guided(sdxl, vae, positive, size=(24, 16))
    assert_effective(picture, plain)
    assert_guided(trace)
    assert trace.mask_for(picture).shape == (1, 192, 128)


def test_the_negative_is_never_guided(sd15, vae):
    """A record that ends up in the negative (a Pivot Conditioning wired there by mistake) is not followed."""
    patched, _ = guide(sd15, vae)
    with pytest.raises(ValueError, match="connect Pivot Conditioning"):
        small.sample(patched, small.conditioning(sd15, 1), negative=small.annotated(sd15, 2))


LOUD = {"clip": 0.0, "gain": 1e3}
"""Uncapped, and far above rounding."""


def masked(positive, mask):
    options = {"mask": mask, "strength": 1.0, "set_cond_area": "default"}
    return core(nodes.ConditioningSetMask, conditioning=positive, **options)[0]


@pytest.mark.parametrize("person_is_default", [False, True])
def test_a_default_conditioning_weighs_what_the_others_leave(sd15, vae, person_is_default):
    """Cond Set Default Combine against the mask that says the same."""
    upper = torch.zeros(1, 128, 128)
    upper[:, :64] = 1
    person, other = small.annotated(sd15), small.conditioning(sd15, 7)
    ordinary, default = (other, person) if person_is_default else (person, other)
    by_default = masked(ordinary, upper) + [[tensor, values | {"default": True}] for tensor, values in default]
    by_mask = masked(ordinary, upper) + masked(default, 1 - upper)
    found, trace = change(sd15, vae, by_default, LOUD)
    expected, _ = change(sd15, vae, by_mask, LOUD)
    assert_guided(trace, calls=1)
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * scale)


def test_a_default_that_is_left_nothing(sd15, vae):
    """ComfyUI does not run it, so nobody is guided, and the report says why."""
    positive = [*small.conditioning(sd15, 7), *([t, v | {"default": True}] for t, v in small.annotated(sd15))]
    moved, trace = change(sd15, vae, positive, LOUD)
    assert not moved.any()
    assert trace.skipped == {COVERED: 1}


def test_a_default_that_another_pack_does_not_run(sd15, vae):
    """That is another reason."""
    lazy = sd15.clone()
    lazy.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "lazy", lambda _, _model, conds, x, *__: [x / 2] * len(conds))
    _, trace = change(lazy, vae, [[t, v | {"default": True}] for t, v in small.annotated(sd15)], LOUD)
    assert trace.skipped == {"another node skipped the model call": 1}


AREAS = [(128, 0, 1.0), (64, 0, 1.0), (64, 64, 1.0), (64, 64, 0.3)]
"""Side, place and the end of its timestep range."""


@in_turn(by_hand=[False, True], guided_pass=["full", "shared"])
def test_an_area_of_the_negative_takes_nothing_from_the_person(sd15, vae, by_hand, guided_pass):
    """ComfyUI adds a copy of the area with the person's text to the positive: all of the picture's prediction is still
    the person's, no other face is looked for in the area, and nothing is missed outside of its timestep range."""
    left = torch.zeros(1, 128, 128)
    left[..., :64] = 1
    hand = ByHand(small.face(), left) if by_hand else None
    positive = small.conditioning(sd15, 1) if by_hand else small.annotated(sd15)
    negative, settings = small.conditioning(sd15, 2), LOUD | {"guided_pass": guided_pass}
    expected, alone = change(sd15, vae, positive, settings, hand, negative=negative)
    scale = float(expected.abs().max())
    assert scale > 0
    for side, place, end in AREAS:
        size = {"width": side, "height": side, "x": place, "y": 0, "strength": 1.0}
        (area,) = core(nodes.ConditioningSetArea, conditioning=small.conditioning(sd15, 8), **size)
        (area,) = core(nodes.ConditioningSetTimestepRange, conditioning=area, start=0.0, end=end)
        found, trace = change(sd15, vae, positive, settings, hand, negative=negative + area)
        assert len(trace.steps) == 1 and not trace.skipped, (side, place, end, trace.summary())
        assert trace.steps[0].found.equal(alone.steps[0].found), (side, place, end)
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2 * scale)


@pytest.mark.parametrize("start, end", [(0.0, 0.5), (0.5, 1.0), (0.25, 0.75)])
def test_when_a_conditioning_applies_is_what_comfyui_says(sd15, start, end):
    """Asked of a sigma on the CPU, at, beside and far from both ends."""
    sampling = sd15.get_model_object("model_sampling")
    ends = [float(sampling.percent_to_sigma(percent)) for percent in (start, end)]
    cond = {"timestep_start": ends[0], "timestep_end": ends[1], "model_conds": {}, "uuid": 0}
    x, answers = torch.zeros(1, 4, 8, 8), set()
    for sigma in [*ends, 1e-3, 50.0, 1.0, *(each * factor for each in ends for factor in (1 - 1e-6, 1 + 1e-6))]:
        sigma = torch.tensor([sigma])
        expected = comfy.samplers.get_area_and_mult(cond, x, sigma) is not None
        assert applies(cond, torch.tensor(float(sigma))) == expected
        answers.add(expected)
    assert answers == {True, False}
