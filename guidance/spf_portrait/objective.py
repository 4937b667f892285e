"""Eq. 1, 2 and 12: the denoising loss, and how much the other terms weigh beside it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

SNR = 5.0
"""Of min-SNR weighting (Hang et al. 2023)."""


def denoising(predicted: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """|eps - eps_theta|^2 of Eq. 2 for each sample [B], as a mean over channels and places."""
    return (predicted.float() - noise.float()).square().mean((1, 2, 3))


def weight(sigma: torch.Tensor, weighting: str) -> torch.Tensor:
    """w(t) of Eq. 2 [B]: 1 for "uniform" (the paper); min(SNR, 5) / SNR for "min_snr", where SNR = 1 / sigma^2."""
    if weighting == "uniform":
        return torch.ones_like(sigma)
    if weighting != "min_snr":
        raise ValueError(f'The denoising loss is weighted "uniform" or "min_snr", not {weighting!r}.')
    return (SNR * sigma.square()).clamp(max=1)


def objective(terms: Mapping[str, torch.Tensor], factors: Mapping[str, float | torch.Tensor]) -> torch.Tensor:
    """Eq. 12: L = L_diff + l1 L_tc + l2 L_fg + l3 L_enh. terms: by name, `denoising` among them, whose factor is 1."""
    return terms["denoising"] + sum(factors[name] * term for name, term in terms.items() if name != "denoising")


def balanced(norms: Mapping[str, float], strengths: Mapping[str, float]) -> dict[str, float]:
    """Ours: l1, l2, l3 by which each term's gradient is `strength` times as long as the denoising loss's.

    norms: of the gradient of each term without a factor, `denoising` among them. A term without a gradient gets 0.
    """
    return {
        name: strength * norms["denoising"] / norms[name] if norms.get(name, 0.0) > 0 else 0.0
        for name, strength in strengths.items()
    }
