"""A noise mask that lets nothing of the face be sampled: what is reported are effects, not gradients."""

from __future__ import annotations

import pytest
import torch
from comfy_extras import nodes_differential_diffusion
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import assert_guided, core, guided
from omniportrait.sampling.people import ByHand

SIZE = (16, 16)


def half(side: str, value: float = 1.0) -> torch.Tensor:
    """A mask at the picture's size."""
    mask = torch.zeros(1, 128, 128)
    mask[..., slice(0, 64) if side == "left" else slice(64, 128)] = value
    return mask


def runs(model, vae, noise_mask, settings=None, batch=1):
    """(plain, guided, trace) of a face by hand in the left half, over a picture that is kept where the mask is 0."""
    by_hand = ByHand.given(small.face(), half("left"))
    latent = torch.randn(batch, 4, *SIZE, generator=torch.Generator().manual_seed(5))
    options = {"latent": latent, "noise_mask": noise_mask, "steps": 6}
    plain = small.sample(model, small.conditioning(model, 1), **options)
    return plain, *guided(model, vae, small.conditioning(model, 1), settings=settings, by_hand=by_hand, **options)


@pytest.mark.parametrize("guided_pass", ["full", "shared"])
def test_a_face_that_is_not_sampled_is_not_guided(sd15, vae, guided_pass):
    plain, picture, trace = runs(sd15, vae, half("right"), {"guided_pass": guided_pass})
    assert trace.steps and all(step.similarity != step.similarity and not step.mask.any() for step in trace.steps)
    assert f"0 of {len(trace.steps)} calls guided" in trace.summary()
    assert "the noise mask lets nothing of the face be sampled" in trace.summary()
    rounding = 1e-5 * float(plain.abs().max()) if guided_pass == "shared" else 0
    torch.testing.assert_close(picture, plain, rtol=0, atol=rounding)


def test_a_face_of_which_something_is_sampled_is(sd15, vae):
    mask = half("right")
    mask[..., 48:64] = 1  # a strip of the face
    plain, picture, trace = runs(sd15, vae, mask)
    assert_guided(trace)
    assert not torch.equal(picture, plain)


def test_each_picture_of_a_batch_has_its_own(sd15, vae):
    plain, picture, trace = runs(sd15, vae, torch.cat([half("right"), half("left")]), batch=2)
    assert torch.equal(picture[0], plain[0]) and not torch.equal(picture[1], plain[1])
    assert trace.mask[0].sum() == 0 < trace.mask[1].sum()


def test_differential_diffusion_samples_more_step_by_step(sd15, vae):
    """Its threshold falls from 1 to 0 with the timestep, so a face at 0.3 is sampled in the last steps only."""
    (model,) = core(nodes_differential_diffusion.DifferentialDiffusion, model=sd15)
    mask = torch.maximum(half("left", 0.3), half("right"))
    _, _, trace = runs(model, vae, mask, {"u": 1.0})
    affected = [step.similarity == step.similarity for step in trace.steps]
    assert affected == [step.t <= 300 for step in trace.steps]
    assert True in affected and False in affected


def test_a_gradient_of_zero_is_no_guidance(sd15, vae):
    plain, picture, trace = runs(sd15, vae, None, {"gain": 0.0})
    assert torch.equal(picture, plain)
    assert f"0 of {len(trace.steps)} calls guided" in trace.summary() and "the gradient was zero" in trace.summary()
