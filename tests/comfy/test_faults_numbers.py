"""Numbers that are not finite, in the latent and in the reference, and memory that runs out where it hurts most."""

from __future__ import annotations

import logging

import pytest
import torch
from omniportrait.backbone.memory import OUT_OF_MEMORY
from omniportrait.backbone.private import PrivateTwin
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import assert_effective, assert_guided, footprint, guide, guided
from omniportrait.sampling import reference as features
from omniportrait.sampling.gradient import NO_LATENT
from omniportrait.sampling.people import ByHand
from parameters import in_turn

BAD = [float("nan"), float("inf")]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit-equal, where NaN equals NaN."""
    return torch.equal(a.nan_to_num(7.0, 8.0, 9.0), b.nan_to_num(7.0, 8.0, 9.0))


@in_turn(value=BAD, by_hand=[False, True], every=[2, 1])
def test_a_latent_with_one_bad_number_is_as_without_us(sd15, vae, value, by_hand, every):
    """ComfyUI makes NaN of it; so do we, counted, and the other picture of the batch is guided as ever.

    By token the bad picture has no map, hence no face; by hand its mask stands and its gradient is what is dropped.
    """
    latent = torch.zeros(2, 4, 16, 16)
    latent[1, 0, 3, 3] = value
    hand = ByHand(small.face(), torch.ones(1, 128, 128)) if by_hand else None
    positive = small.conditioning(sd15, 1) if by_hand else small.annotated(sd15)
    options = {"latent": latent, "denoise": 0.5}
    plain = small.sample(sd15, positive, **options)
    assert not plain[1].isfinite().any() and plain[0].isfinite().all()
    picture, trace = guided(sd15, vae, positive, by_hand=hand, settings={"every": every}, **options)
    assert not picture[1].isfinite().any()
    assert_effective(picture[:1], plain[:1])
    reason = "the gradient was not finite" if by_hand else "no face found at 'woman'"
    assert trace.skipped == {reason: len(trace.steps)}
    clean = {"latent": torch.zeros(2, 4, 16, 16), "denoise": 0.5}
    expected, _ = guided(sd15, vae, positive, by_hand=hand, settings={"every": every}, **clean)
    torch.testing.assert_close(picture[0], expected[0], rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@in_turn(value=BAD, every=[1, 2])
def test_an_all_bad_latent_is_as_without_us(sd15, vae, value, every):
    positive = small.annotated(sd15)
    options = {"latent": torch.full((1, 4, 16, 16), value), "denoise": 0.5}
    plain = small.sample(sd15, positive, **options)
    picture, trace = guided(sd15, vae, positive, settings={"every": every}, **options)
    assert same(picture, plain)
    assert trace.steps and sum(trace.skipped.values()) == len(trace.steps)
    assert trace.plot().isfinite().all()


class BadVae:
    """A VAE whose 16-bit encoder overflows, as SDXL's own does."""

    def __init__(self, vae, value: float) -> None:
        self.vae, self.value, self.first_stage_model = vae, value, vae.first_stage_model

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        latent = self.vae.encode(pixels)
        return latent.index_fill(1, torch.tensor([2]), self.value)


@in_turn(family=["sd15", "sdxl"], every=[1, 2])
def test_a_vae_that_overflows_on_the_reference(family, vae, caplog, every):
    """The picture is finished without guidance, the log names the VAE, and a good VAE guides again."""
    positive = small.annotated(family)
    plain = small.sample(family, positive)
    picture, trace = guided(family, BadVae(vae, float("nan")), positive, settings={"every": every})
    assert torch.equal(picture, plain)
    assert trace.steps and trace.skipped == {NO_LATENT: len(trace.steps)}
    assert any(NO_LATENT in r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert not features._cache
    picture, trace = guided(family, vae, positive, settings={"every": every})
    assert_guided(trace)
    assert_effective(picture, plain)


@pytest.mark.parametrize("every", [1, 2])
def test_bad_reference_features_are_not_kept(sd15, vae, monkeypatch, every):
    """A model that overflowed once (16 bit, say) must not spoil the cache for the next prompt."""
    positive = small.annotated(sd15)
    expected, _ = guided(sd15, vae, positive, settings={"every": every})
    features.forget_all()
    original = features.compute

    def overflow(*args):
        made = original(*args)
        return features.ReferenceFeatures(made.features * float("inf"), made.mask)

    monkeypatch.setattr(features, "compute", overflow)
    _, trace = guided(sd15, vae, positive, settings={"every": every})
    assert trace.skipped == {"the gradient was not finite": len(trace.steps)}
    assert not features._cache
    monkeypatch.undo()
    again, trace = guided(sd15, vae, positive, settings={"every": every})
    assert_guided(trace)
    assert torch.equal(again, expected)


def test_memory_that_runs_out_in_the_reference_features(family, vae, monkeypatch):
    """They are made inside the first guided step; the second try, with checkpointing, makes them."""
    positive = small.annotated(family)
    expected, _ = guided(family, vae, positive, settings={"checkpointing": "on"})
    features.forget_all()
    before, attempts, original = footprint(family), [], PrivateTwin.tap

    def features_(self, *args, **kwargs):
        attempts.append(torch.is_grad_enabled())
        if len(attempts) == 2:
            raise OUT_OF_MEMORY("Tried to allocate 1.20 GiB.")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(PrivateTwin, "tap", features_)
    picture, trace = guided(family, vae, positive)
    assert not any(attempts[:3])
    assert_guided(trace)
    assert torch.equal(picture, expected)
    assert footprint(family) == before


@pytest.mark.parametrize("every", [1, 2])
def test_a_failed_attempt_counts_no_reason_twice(sd15, vae, monkeypatch, every):
    """Of a batch of two, one has no face; memory runs out on the way back, after that was found: counted once."""
    positive = small.annotated(sd15)
    model, traces = guide(sd15, vae, every=every)
    original, failures = torch.autograd.grad, []

    def grad(outputs, inputs, *args, **kwargs):
        if getattr(inputs, "ndim", 0) == 4 and inputs.shape[-1] == 16 and not failures:  # the first way back to x
            failures.append(True)
            raise OUT_OF_MEMORY("Tried to allocate 3.90 GiB.")
        return original(outputs, inputs, *args, **kwargs)

    latent = torch.zeros(2, 4, 16, 16)
    latent[1, 0, 3, 3] = float("nan")
    monkeypatch.setattr(torch.autograd, "grad", grad)
    small.sample(model, positive, latent=latent, denoise=0.5)
    (trace,) = traces
    assert failures and trace.skipped == {"no face found at 'woman'": len(trace.steps)}


@pytest.mark.parametrize("place", [(0, 0), (8, 8)], ids=["outside the face", "inside"])
def test_a_cfg_difference_that_is_not_finite(sd15, vae, place):
    """Another node mends the prediction, so the plain picture is finite: the cap has nothing to go by, and the picture
    stays as it is."""

    def spoil(args):
        cond, uncond = args["conds_out"]
        uncond = uncond.clone()
        uncond[0, :, place[0], place[1]] = float("inf")
        return [cond, uncond]

    mended = sd15.clone()
    mended.set_model_sampler_pre_cfg_function(spoil)
    mended.set_model_sampler_post_cfg_function(
        lambda args: torch.where(args["denoised"].isfinite(), args["denoised"], args["cond_denoised"])
    )
    mask = torch.zeros(1, 128, 128)
    mask[:, 48:96, 48:96] = 1
    hand, positive = ByHand(small.face(), mask), small.conditioning(sd15, 1)
    for batch in (1, 2):
        plain = small.sample(mended, positive, batch=batch)
        picture, trace = guided(mended, vae, positive, by_hand=hand, batch=batch)
        assert plain.isfinite().all() and torch.equal(picture[0], plain[0])
        assert trace.skipped == {"the gradient was not finite": len(trace.steps)}
    assert_effective(picture[1:], plain[1:])
