"""Time: sigma (ComfyUI) to timestep t in 0..1000 (the paper), the guidance window, and the scale between the two
latents.

The paper's z_t is variance preserving, ComfyUI's x is variance exploding: x = x0 + sigma * eps, z_t = x / sqrt(1 +
sigma^2), and
sigma = sqrt((1 - abar_t) / abar_t).
"""

from __future__ import annotations

from functools import lru_cache

import torch

TRAINING_STEPS = 1000


@lru_cache(maxsize=1)
def stable_diffusion_sigmas() -> torch.Tensor:
    """[1000] float64 sigmas of Stable Diffusion's own schedule: sqrt(beta) linear from sqrt(0.00085) to sqrt(0.012)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TRAINING_STEPS, dtype=torch.float64) ** 2
    alphas_bar = torch.cumprod(1 - betas, dim=0)
    return ((1 - alphas_bar) / alphas_bar).sqrt()


def timestep_to_sigma(t: float) -> float:
    """Sigma at timestep t, interpolated in log sigma as ComfyUI does. t is clamped to 0..999."""
    log_sigmas = stable_diffusion_sigmas().log()
    t = min(max(float(t), 0.0), TRAINING_STEPS - 1.0)
    low = min(int(t), TRAINING_STEPS - 2)
    return float(torch.lerp(log_sigmas[low], log_sigmas[low + 1], t - low).exp())


def sigma_to_timestep(sigma: float) -> float:
    """Timestep of the nearest sigma of Stable Diffusion's schedule."""
    log_sigma = torch.tensor(max(float(sigma), 1e-10), dtype=torch.float64).log()
    return float((stable_diffusion_sigmas().log() - log_sigma).abs().argmin())


def _counts_steps(model_sampling: object) -> bool:
    """Whether the model itself is told t in 0..999 (eps, v); EDM and continuous v are told functions of sigma below
    2."""
    return float(model_sampling.timestep(model_sampling.sigma_max)) > 100


def timestep_of(model_sampling: object, sigma: float) -> float:
    """t of the model's own schedule where it has one, else of the same sigma in Stable Diffusion's (EDM, continuous
    v)."""
    if not _counts_steps(model_sampling):
        return sigma_to_timestep(sigma)
    return float(model_sampling.timestep(torch.as_tensor(sigma, dtype=torch.float32)))


def sigma_of(model_sampling: object, t: float) -> float:
    """Sigma at which the model sees timestep t; inverse of `timestep_of`."""
    if not _counts_steps(model_sampling):
        return timestep_to_sigma(t)
    return float(model_sampling.sigma(torch.as_tensor(float(t))))


class Clock:
    """t of the sigmas of one run. Works on a copy of the model's tables on the CPU: asking never waits for a GPU."""

    def __init__(self, model_sampling: object) -> None:
        self._sampling = model_sampling
        if isinstance(model_sampling, torch.nn.Module):
            self._sampling = model_sampling.__class__.__new__(model_sampling.__class__)
            self._sampling.__dict__.update(model_sampling.__dict__)
            buffers = {name: b if b is None else b.cpu() for name, b in model_sampling._buffers.items()}
            self._sampling.__dict__["_buffers"] = buffers
        self._known: dict[float, float] = {}

    def t(self, sigma: float) -> float:
        """`timestep_of` the run's model."""
        if sigma not in self._known:
            self._known[sigma] = timestep_of(self._sampling, sigma)
        return self._known[sigma]


def guided(t: float, u: float) -> bool:
    """Whether Eq. 11 adds the gradient at timestep t: t <= u * T, the low-noise end."""
    return t <= u * TRAINING_STEPS
