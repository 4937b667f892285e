"""sigma and t against Stable Diffusion's published schedule, computed here a second way."""

import math

import pytest
import torch
from omniportrait.backbone import clock as schedule


def naive_sigma(t: int) -> float:
    """Plain Python product over the betas."""
    abar = 1.0
    for i in range(t + 1):
        root = 0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999
        abar *= 1 - root**2
    return math.sqrt((1 - abar) / abar)


@pytest.mark.parametrize("t, sigma", [(600, 2.285), (671, 2.975), (999, 14.61), (800, 5.11), (400, 1.164)])
def test_known_pairs(t, sigma):
    assert schedule.timestep_to_sigma(t) == pytest.approx(sigma, abs=6e-3)
    assert schedule.timestep_to_sigma(t) == pytest.approx(naive_sigma(t), rel=1e-9)
    assert schedule.sigma_to_timestep(naive_sigma(t)) == t


def test_between_steps_is_geometric():
    low, high = naive_sigma(600), naive_sigma(601)
    assert schedule.timestep_to_sigma(600.5) == pytest.approx(math.sqrt(low * high), rel=1e-9)


def test_ends_are_clamped():
    assert schedule.timestep_to_sigma(-5) == pytest.approx(naive_sigma(0))
    assert schedule.timestep_to_sigma(5000) == pytest.approx(naive_sigma(999))
    assert schedule.sigma_to_timestep(0.0) == 0
    assert schedule.sigma_to_timestep(1e9) == 999


def test_guided_is_the_low_noise_end():
    assert [schedule.guided(t, 0.6) for t in (999, 601, 600, 599, 0)] == [False, False, True, True, True]
    assert not schedule.guided(600, 0.0)


class Counted:
    """A model that is told t in 0..999, with a schedule of its own."""

    sigmas = torch.linspace(0.1, 50, 1000)
    sigma_max = sigmas[-1]

    def timestep(self, sigma):
        return (self.sigmas - sigma).abs().argmin()

    def sigma(self, t):
        return self.sigmas[int(t)]


class Continuous:
    """An EDM model: it is told a function of sigma."""

    sigma_max = torch.tensor(120.0)

    def timestep(self, sigma):
        return 0.25 * sigma.log()

    def sigma(self, t):
        return (t / 0.25).exp()


def test_a_models_own_schedule_counts():
    assert schedule.timestep_of(Counted(), float(Counted.sigmas[321])) == 321
    assert schedule.sigma_of(Counted(), 321) == pytest.approx(float(Counted.sigmas[321]))


def test_edm_goes_by_sigma():
    assert schedule.timestep_of(Continuous(), naive_sigma(600)) == 600
    assert schedule.sigma_of(Continuous(), 671) == pytest.approx(naive_sigma(671))
