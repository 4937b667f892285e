"""The guided step: energy, masked gradient, the cap on its strength, and the window of timesteps.

The sign is as printed: the coefficient of epsilon in the step to z_{t-1} is negative, so adding the gradient of E to
the noise prediction walks down E, that is, up the similarity.
"""

from __future__ import annotations

import torch

from .settings import Curve, Settings

TIMESTEPS = 1000
"""T."""
TINY = 1e-12


def masked(gradient: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Eq. 9: the gradient [B, C, h, w] of E inside M_gen, boolean [B, 1, h, w]; the background's is filtered out.

    As printed it multiplies E, a number, by the mask; what the text describes is this. No product, which would let NaN
    out of pictures that are not guided.
    """
    return torch.where(mask, gradient, 0.0)


def energy(similarity: torch.Tensor, p: float) -> torch.Tensor:
    """Eq. 10: E = p / (1 + S)."""
    return p / (1 + similarity)


def step(denoised: torch.Tensor, sigma: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Eq. 11: epsilon + g, told of the predicted picture [B, C, H, W] at sigma [B].

    ComfyUI's x = x0 + sigma epsilon, so that is denoised - sigma g, for eps, v and EDM models alike.
    """
    return denoised - sigma.view(-1, 1, 1, 1) * gradient


def in_window(t: float, u: float) -> bool:
    """Whether the gradient is added at timestep t: t <= u T, the low-noise end."""
    return t <= u * TIMESTEPS


def weight_at(t: float, first: float, last: float, curve: Curve) -> float:
    """The weight on the strength at timestep t of a window from `first` down to `last`: 0 outside of it. Ours.

    constant: 1. fade in: (first - t) / (first - last), from 0 to 1. fade out: one minus that.
    """
    if not last <= t <= first:
        return 0.0
    if curve == "constant" or first == last:
        return 1.0
    passed = (first - t) / (first - last)
    return passed if curve == "fade in" else 1 - passed


def scaled(
    gradient: torch.Tensor,
    sigma: torch.Tensor,
    yardstick: torch.Tensor,
    mask: torch.Tensor,
    settings: Settings,
    weight: float = 1.0,
) -> torch.Tensor:
    """g of the guided step from the masked gradient [B, C, H, W]: gain, cap and strength, which the paper lacks.

    yardstick, mask: as in `limit`. sigma: [B]. weight: on the strength, by weight_at.
    """
    if settings.sigma_scale:
        gradient = gradient * (sigma / (1 + sigma**2) ** 0.5).view(-1, 1, 1, 1)  # sqrt(1 - abar_t)
    return settings.strength * weight * limit(gradient * settings.gain, yardstick, mask, settings.clip)


def limit(gradient: torch.Tensor, yardstick: torch.Tensor, mask: torch.Tensor, share: float) -> torch.Tensor:
    """Scale each picture's gradient down where its RMS inside the mask is above `share` of the yardstick's. share 0: no
    limit.

    The yardstick is w (eps_c - eps_u), what classifier-free guidance adds; at cfg 1 the noise prediction itself. Where
    it is not finite there is no limit to keep, and what is not 0 becomes NaN.
    """
    if share <= 0:
        return gradient
    allowed = share * masked_rms(yardstick, mask)
    factor = (allowed / masked_rms(gradient, mask).clamp_min(TINY)).clamp(max=1)
    limited = gradient * torch.where(allowed.isfinite(), factor, float("nan"))
    return torch.where(gradient == 0, gradient, limited)


def masked_rms(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Root mean square of [B, C, h, w] inside a [B, 1, h, w] mask in 0..1, one number a picture: [B, 1, 1, 1]."""
    weight = mask.sum(dim=(1, 2, 3), keepdim=True) * values.shape[1]
    return ((values.square() * mask).sum(dim=(1, 2, 3), keepdim=True) / weight.clamp_min(TINY)).sqrt()
