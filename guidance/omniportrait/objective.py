"""The training objective of the pivot encoder: the noise, and where the subject's word looks.

Terms are told for each sample [B], so that a batch may leave some out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

TINY = 1e-6


def objective(denoising: torch.Tensor, localisation: torch.Tensor, eta: float) -> torch.Tensor:
    """Eq. 5: |eps - eps_theta(z_t, t, C)|^2 + eta / (h w) sum_ij (A_t(m)[i, j] - M[i, j])^2, of its two terms."""
    return denoising + eta * localisation


def denoising(predicted: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The first term for each sample [B], as a mean over channels and places."""
    return (predicted.float() - noise.float()).square().mean(dim=(1, 2, 3))


def denoising_in_face(predicted: torch.Tensor, noise: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The first term inside the face alone [B]: the mean over the mask [B, H, W] in 0..1."""
    error = (predicted.float() - noise.float()).square().mean(1)
    return (error * mask).sum((1, 2)) / mask.sum((1, 2)).clamp_min(TINY)


def localisation(maps: torch.Tensor, masks: torch.Tensor, normalisation: str) -> torch.Tensor:
    """The second term without eta for each sample [B].

    maps: A_t(m), [B, h, w], a token's share of each place's attention. masks: [B, H, W] in 0..1, M of the training
    picture; brought to the map's grid by its mean over each cell.
    normalisation: "max" divides each map by its maximum (Break-A-Scene's; the map is min-max normalised at inference),
    "none" is the paper's letter, "ratio" is TokenCompose's (1 - sum(A M) / sum(A))^2.
    """
    masks = F.interpolate(masks[:, None], maps.shape[-2:], mode="area")[:, 0]
    if normalisation == "ratio":
        inside = (maps * masks).sum((1, 2)) / (maps.sum((1, 2)) + TINY)
        return (1 - inside).square()
    if normalisation == "max":
        maps = maps / (maps.amax((1, 2), keepdim=True) + TINY)
    elif normalisation != "none":
        raise ValueError(f'The localisation\'s maps are normalised by "max", "none" or "ratio", not {normalisation!r}.')
    return (maps - masks).square().mean((1, 2))


def pooled(maps: torch.Tensor, side: int = 16) -> torch.Tensor:
    """Maps [B, h, w] at the paper's 16x16 or what is nearest: SDXL's 32x32 are averaged over 2x2."""
    while maps.shape[-2] * maps.shape[-1] >= 2 * side * side and not any(n % 2 for n in maps.shape[-2:]):
        maps = F.avg_pool2d(maps[:, None], 2)[:, 0]
    return maps
