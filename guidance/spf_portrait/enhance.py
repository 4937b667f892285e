"""Eq. 10 and 11: the picture that the tuned model is on its way to should show the attribute as the training picture
does. Vectors come from any model with an image tower and a text tower (CLIP)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

FIRST, LAST = 400, 800
"""Timesteps between which Eq. 11 counts: below, the noisy picture shows the attribute anyway; above, the one-step
picture shows nothing."""


def one_step_picture(x: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """x0_hat [B, C, h, w] of x = x0 + sigma eps; in the paper's words (z_t - sigma_t eps) / alpha_t. sigma: [B]."""
    return x - sigma.view(-1, 1, 1, 1) * noise


def representation(picture: torch.Tensor, phrase: torch.Tensor) -> torch.Tensor:
    """Eq. 10: V(x) = I(x) - T(y_tar), of unit vectors. picture: [B, E]. phrase: [E] or [B, E]."""
    return F.normalize(picture.float(), dim=-1) - F.normalize(phrase.float(), dim=-1)


def response_enhancement(predicted: torch.Tensor, shown: torch.Tensor, phrase: torch.Tensor) -> torch.Tensor:
    """Eq. 11 [B]: 1 - cos(V(x0_hat), V(x0)). predicted, shown: image vectors of both pictures [B, E]."""
    return 1 - F.cosine_similarity(representation(predicted, phrase), representation(shown, phrase).detach(), dim=-1)


def direct(predicted: torch.Tensor, phrase: torch.Tensor) -> torch.Tensor:
    """[B] 1 - cos(I(x0_hat), T(y_tar)): the supervision that the paper argues against. Real pictures of an attribute
    are far from its words, so it pushes past them."""
    return 1 - F.cosine_similarity(predicted.float(), phrase.float().expand_as(predicted), dim=-1)


def counted(timesteps: torch.Tensor, total: int) -> torch.Tensor:
    """Boolean [B]: whose Eq. 11 counts. timesteps: of `total`."""
    share = timesteps * 1000 // total
    return (share >= FIRST) & (share <= LAST)
