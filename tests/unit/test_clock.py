"""sigma and t against Stable Diffusion's published schedule, computed here a second way."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omniportrait.backbone.clock import Clock


def naive_sigma(t: int) -> float:
    """Plain Python product over the betas."""
    abar = 1.0
    for i in range(t + 1):
        root = 0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999
        abar *= 1 - root**2
    return math.sqrt((1 - abar) / abar)


class Counted:
    """A model that is told t in 0..999, with a schedule of its own, as ComfyUI's ModelSamplingDiscrete."""

    sigmas = torch.linspace(0.1, 50, 1000)
    sigma_max = sigmas[-1]

    def timestep(self, sigma):
        dists = sigma.log() - self.sigmas.log()[:, None]
        return dists.abs().argmin(dim=0).view(sigma.shape)

    def sigma(self, t):
        return self.sigmas[int(t)]


class Distilled(Counted):
    """Every twentieth of them, as a model distilled to fifty steps has it."""

    sigmas = Counted.sigmas[19::20]

    def timestep(self, sigma):
        return super().timestep(sigma) * 20 + 19


class Continuous:
    """An EDM model: it is told a function of sigma."""

    sigma_max = torch.tensor(120.0)

    def timestep(self, sigma):
        return 0.25 * sigma.log()

    def sigma(self, t):
        return (t / 0.25).exp()


PUBLISHED = Clock(Continuous())
"""Stable Diffusion's schedule, by which EDM goes."""


@pytest.mark.parametrize("t, sigma", [(600, 2.285), (671, 2.975), (999, 14.61), (800, 5.11), (400, 1.164)])
def test_known_pairs(t, sigma):
    assert PUBLISHED.sigma(t) == pytest.approx(sigma, abs=6e-3)
    assert PUBLISHED.sigma(t) == pytest.approx(naive_sigma(t), rel=1e-9)
    assert PUBLISHED.t(naive_sigma(t)) == t


def test_between_steps_is_geometric():
    low, high = naive_sigma(600), naive_sigma(601)
    assert PUBLISHED.sigma(600.5) == pytest.approx(math.sqrt(low * high), rel=1e-9)


def test_ends_are_clamped():
    assert PUBLISHED.sigma(-5) == pytest.approx(naive_sigma(0))
    assert PUBLISHED.sigma(5000) == pytest.approx(naive_sigma(999))
    assert PUBLISHED.t(0.0) == 0
    assert PUBLISHED.t(1e9) == 999


def test_a_models_own_schedule_counts():
    clock = Clock(Counted())
    assert clock.t(float(Counted.sigmas[321])) == 321
    assert clock.sigma(321) == pytest.approx(float(Counted.sigmas[321]))


@settings(deadline=None)
@given(st.floats(0.1, 50))
def test_the_clock_tells_what_the_model_is_told(sigma):
    for sampling in (Counted(), Distilled()):
        assert Clock(sampling).t(sigma) == float(sampling.timestep(torch.tensor(sigma)))
