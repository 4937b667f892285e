"""Time: sigma (ComfyUI) to timestep t in 0..1000 (the papers) and back.

The papers' z_t is variance preserving, ComfyUI's x is variance exploding: x = x0 + sigma * eps, z_t = x / sqrt(1 +
sigma^2), and sigma = sqrt((1 - abar_t) / abar_t).
"""

from __future__ import annotations

import torch

TRAINING_STEPS = 1000


def stable_diffusion_sigmas() -> torch.Tensor:
    """[1000] float64 sigmas of Stable Diffusion's own schedule: sqrt(beta) linear from sqrt(0.00085) to sqrt(0.012)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TRAINING_STEPS, dtype=torch.float64) ** 2
    alphas_bar = torch.cumprod(1 - betas, dim=0)
    return ((1 - alphas_bar) / alphas_bar).sqrt()


class Clock:
    """t of the sigmas of one model, by tables on the CPU: asking never waits for a GPU.

    model_sampling: ComfyUI's. Where the model itself is told t in 0..999 (eps, v) its own schedule counts; EDM and
    continuous v are told functions of sigma below 2, so theirs is Stable Diffusion's at the same sigma.
    """

    def __init__(self, model_sampling: object) -> None:
        counts_steps = float(model_sampling.timestep(model_sampling.sigma_max)) > 100
        self._sampling = model_sampling if counts_steps else None
        if counts_steps:
            self._log_sigmas = model_sampling.sigmas.cpu().log()
            self._times = model_sampling.timestep(model_sampling.sigmas).cpu()
        else:
            self._log_sigmas = stable_diffusion_sigmas().log()
            self._times = torch.arange(TRAINING_STEPS)

    def t(self, sigma: float) -> float:
        """Timestep of the schedule's sigma that is nearest in log sigma."""
        log_sigma = torch.tensor(max(sigma, 1e-10), dtype=self._log_sigmas.dtype).log()
        return float(self._times[(self._log_sigmas - log_sigma).abs().argmin()])

    def sigma(self, t: float) -> float:
        """Sigma at which the model sees timestep t; between steps interpolated in log sigma, as ComfyUI does. t of
        Stable Diffusion's schedule is clamped to 0..999."""
        if self._sampling is not None:
            return float(self._sampling.sigma(torch.as_tensor(float(t))))
        t = min(max(float(t), 0.0), TRAINING_STEPS - 1.0)
        low = min(int(t), TRAINING_STEPS - 2)
        return float(torch.lerp(self._log_sigmas[low], self._log_sigmas[low + 1], t - low).exp())
