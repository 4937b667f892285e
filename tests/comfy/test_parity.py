"""Off is off, and a guided run leaves nothing behind: plain results stay bit-equal to those of a ComfyUI without us."""

from __future__ import annotations

import pytest
import torch
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import assert_effective, assert_guided, footprint, guide
from omniportrait.sampling import reference as features
from parameters import in_turn


@pytest.mark.quick
@in_turn(family=["sd15", "sdxl"], off=[{"strength": 0.0}, {"u": 0.0}])
def test_off_is_bit_equal(family, vae, off):
    """tests/lab/test_matrix.py has other samplers, schedulers and workflows."""
    positive = small.annotated(family)
    plain = small.sample(family, positive)
    model, traces = guide(family, vae, **off)
    assert torch.equal(small.sample(model, positive), plain)
    assert not traces and not model.wrappers.get("predict_noise")


def test_off_needs_no_identity(sd15, vae):
    """A workflow with guidance switched off runs with any prompt."""
    positive = small.conditioning(sd15, 1)
    assert torch.equal(small.sample(guide(sd15, vae, strength=0.0)[0], positive), small.sample(sd15, positive))


def test_a_second_sampler_on_the_same_model_notices_nothing(family, vae):
    """tests/lab/test_matrix.py has other samplers, schedulers and workflows."""
    positive = small.annotated(family)
    before = small.sample(family, positive)
    model, traces = guide(family, vae)
    assert_effective(small.sample(model, positive), before)
    assert_guided(traces[0])
    assert torch.equal(small.sample(family, positive), before)


def test_the_first_plain_run_after_a_guided_one(family, vae):
    """The order the other way round: nobody sampled plainly before the guided run loaded the model."""
    positive = small.annotated(family)
    twin = small.sd15() if small.width(family) == 768 else small.sdxl()
    model, traces = guide(family, vae)
    small.sample(model, positive)
    assert_guided(traces[0])
    assert torch.equal(small.sample(family, positive), small.sample(twin, small.annotated(twin)))


@in_turn(family=["sd15", "sdxl"], sampler=["euler_ancestral", "dpmpp_2m_sde"])
def test_the_prompt_queued_again_is_bit_equal(family, vae, sampler):
    """The first run makes the reference features, the second takes them from the cache, the third makes them anew."""
    positive = small.annotated(family)
    model, traces = guide(family, vae)
    first = small.sample(model, positive, sampler=sampler)
    assert len(features._cache) == 1
    second = small.sample(model, positive, sampler=sampler)
    features.forget_all()
    third = small.sample(guide(family, vae)[0], small.annotated(family), sampler=sampler)
    assert torch.equal(first, second) and torch.equal(first, third)
    for trace in traces:
        assert_guided(trace)


def test_the_cache_holds_two_and_keeps_them_apart(sd15, vae):
    pictures = []
    for seed in (0, 1, 2, 0):
        model, traces = guide(sd15, vae)
        pictures.append(small.sample(model, small.annotated(sd15, 1) if seed == 0 else _with_face(sd15, seed)))
        assert_guided(traces[0])
        assert len(features._cache) <= 2
    assert torch.equal(pictures[0], pictures[3])
    assert not torch.equal(pictures[0], pictures[1]) and not torch.equal(pictures[1], pictures[2])


def _with_face(model, seed):
    """The same prompt and token with another person's face."""
    tensor, options = small.conditioning(model, 1)[0]
    return [[tensor, options | {small.RECORDS_KEY: (small.record(model, seed=seed),)}]]


@in_turn(family=["sd15", "sdxl"], checkpointing=["off", "on"])
def test_the_loaded_model_is_untouched(family, vae, checkpointing):
    positive = small.annotated(family)
    small.sample(family, positive)  # ComfyUI loads the model
    before = footprint(family)
    model, traces = guide(family, vae, checkpointing=checkpointing)
    patched = footprint(model)
    small.sample(model, positive)
    assert_guided(traces[0])
    assert footprint(family) == before
    assert footprint(model) == patched


def test_weights_made_under_inference_mode_are_what_is_tested(family):
    """The harness loads as nodes do: these weights cannot be saved for backward."""
    assert all(p.is_inference() for p in family.model.diffusion_model.parameters())


def test_the_patched_model_shares_weights_and_nothing_else(sd15, vae):
    model, _ = guide(sd15, vae)
    assert model.model is sd15.model and model is not sd15
    assert not sd15.wrappers.get("predict_noise") and "sampler_post_cfg_function" not in sd15.model_options


def test_patching_twice_guides_once(sd15, vae):
    positive = small.annotated(sd15)
    once, _ = guide(sd15, vae)
    twice, traces = guide(guide(sd15, vae, gain=0.0)[0], vae)
    assert torch.equal(small.sample(twice, positive), small.sample(once, positive))
    assert_guided(traces[0])


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
def test_the_global_random_state_is_as_after_a_plain_run(sd15, vae, sampler):
    positive = small.annotated(sd15)
    states = []
    for model in (sd15, guide(sd15, vae)[0]):
        torch.manual_seed(11)
        small.sample(model, positive, sampler=sampler)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_grad_and_inference_mode_are_as_before(sd15, vae):
    positive, (model, traces) = small.annotated(sd15), guide(sd15, vae)
    seen = []

    def callback(*_):
        seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

    before = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    picture = small.sample(model, positive, callback=callback)
    assert_guided(traces[0])
    assert seen and set(seen) == {(True, False)}
    assert (torch.is_inference_mode_enabled(), torch.is_grad_enabled()) == before == (False, True)
    assert not picture.requires_grad


def test_the_run_is_dropped_with_the_run(sd15, vae):
    """Nothing that holds features, views or pictures is left in any model_options."""
    model, traces = guide(sd15, vae)
    small.sample(model, small.annotated(sd15))
    assert_guided(traces[0])
    assert "omniportrait_session" not in model.model_options["transformer_options"]
    assert "omniportrait_session" not in sd15.model_options["transformer_options"]
