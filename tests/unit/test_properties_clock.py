"""A run's clock tells the model's own time, asks once for each sigma, and leaves the model's tables alone."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omniportrait.backbone.clock import Clock, stable_diffusion_sigmas, timestep_of


class Discrete(torch.nn.Module):
    """As ComfyUI's ModelSamplingDiscrete: the nearest of a thousand sigmas."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = []
        self.register_buffer("sigmas", stable_diffusion_sigmas().float())
        self.register_buffer("nothing", None)

    @property
    def sigma_max(self) -> torch.Tensor:
        return self.sigmas[-1]

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        self.asked.append(float(sigma))
        return (self.sigmas.log() - sigma.log()).abs().argmin()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.03, 14.6), min_size=1, max_size=6))
def test_the_clock_is_the_model_s(sigmas):
    sampling = Discrete()
    buffers = dict(sampling._buffers)
    clock = Clock(sampling)
    assert [clock.t(sigma) for sigma in sigmas] == [timestep_of(Discrete(), sigma) for sigma in sigmas]
    asked = len(sampling.asked)
    assert [clock.t(sigma) for sigma in sigmas] == [clock.t(sigma) for sigma in sigmas]
    assert len(sampling.asked) == asked
    assert all(sampling._buffers[name] is each for name, each in buffers.items())


def test_a_sampling_that_is_no_module():
    class Continuous:
        sigma_max = 80.0

        def timestep(self, sigma):
            return torch.as_tensor(sigma).log() / 4

    assert Clock(Continuous()).t(2.2845) == timestep_of(Continuous(), 2.2845)
