"""Eq. 9 to 11 of the OmniPortrait paper: the energy, its gradient with respect to the features, and the limit on its
strength.

The sign is as printed: the coefficient of epsilon in the step to z_{t-1} is negative, so adding the gradient of E to
the noise
prediction walks down E, that is, up the similarity.
"""

from __future__ import annotations

import torch

from ...backbone.memory import upload
from .match import Reduction, nearest, similarity

TINY = 1e-12


def energy(similarity_value: torch.Tensor, p: float) -> torch.Tensor:
    """Eq. 10: E = p / (1 + S)."""
    return p / (1 + similarity_value)


def feature_energy(
    reference: torch.Tensor,
    features: torch.Tensor,
    mask: torch.Tensor,
    p: float,
    reduction: Reduction,
) -> tuple[torch.Tensor, torch.Tensor]:
    """E (Eq. 7, 8, 10) of one picture and the mean similarity for people to read.

    reference: [N, C] features of the reference's face, float32. features: [C, h, w] of the picture, differentiable.
    mask: boolean [h, w], M_gen at the features' size, not empty; on the CPU, where its points are counted so that no
    GPU is waited for.
    """
    inside = upload(mask.flatten().nonzero()[:, 0], features.device)
    points = features.flatten(1).T.index_select(0, inside).float()
    match = nearest(reference, points.detach())
    value = energy(similarity(reference, points, match, reduction), p)
    return value, similarity(reference, points.detach(), match, "mean")


def masked_rms(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Root mean square of [B, C, h, w] inside a [B, 1, h, w] mask in 0..1, one number a picture: [B, 1, 1, 1]."""
    weight = mask.sum(dim=(1, 2, 3), keepdim=True) * values.shape[1]
    return ((values.square() * mask).sum(dim=(1, 2, 3), keepdim=True) / weight.clamp_min(TINY)).sqrt()


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
