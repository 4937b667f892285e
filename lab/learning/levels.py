"""How much each noise level counts in the diffusion model's loss."""

from __future__ import annotations

import torch
from torch import nn

SNR_LIMIT = 5.0
"""min-SNR weighting (arXiv 2303.09556): no noise level counts more than this in the picture's own units."""
BINS = 20
MEMORY = 0.02
"""Share of a running mean that each new error replaces, once it is as old as that."""


class MinSnr(nn.Module):
    """min(SNR, SNR_LIMIT) / SNR for an error of the noise: serves a clean picture, since what is decided under much
    noise hardly counts."""

    def forward(self, steps: torch.Tensor, sigmas: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
        """Weights [B] for errors [B] at `steps` [B] of 1000, whose sigmas are [B]."""
        return (SNR_LIMIT * sigmas**2).clamp(max=1.0)


class Even(nn.Module):
    """One over the level's usual error, so that a hundredth off it counts alike at each noise level: what words decide,
    they decide under much noise, where the noise itself is easy to predict and its error small.

    The aim of EDM2's uncertainty weighting (arXiv 2312.02696, Eq. 21), by a running mean of the error in each of BINS
    parts of the range instead of a small network.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(BINS))
        self.register_buffer("count", torch.zeros(BINS))

    @torch.no_grad()
    def forward(self, steps: torch.Tensor, sigmas: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
        """Weights [B] for errors [B] at `steps` [B] of 1000, which become part of the means first."""
        bins = steps * BINS // 1000
        for place, value in zip(bins.tolist(), error.detach(), strict=True):
            self.count[place] += 1
            self.mean[place] += (value - self.mean[place]) * (1 / self.count[place]).clamp(min=MEMORY)
        return 1 / self.mean[bins].clamp(min=1e-6)


WEIGHTINGS = {"min-snr": MinSnr, "even": Even}
