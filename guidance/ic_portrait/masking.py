"""Eq. 1 and 2: what the nets see of the style picture, and pictures side by side."""

from __future__ import annotations

import torch


def kept(picture: torch.Tensor, share: float, random: torch.Generator) -> torch.Tensor:
    """F of Eq. 1: a share of the pixels, drawn uniformly over the picture, and black elsewhere.

    picture: [..., H, W] in 0..1; all leading dimensions lose the same pixels. share: 0..1.
    """
    shown = torch.rand(picture.shape[-2:], generator=random) < share
    return picture * shown.to(picture)


def joined(profile: torch.Tensor, lit: torch.Tensor) -> torch.Tensor:
    """The operator of Eq. 1 and 2: [..., h, w] beside [..., h, w] is [..., h, 2 w]."""
    return torch.cat([profile, lit], dim=-1)


def halves(both: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Profile and lit [..., h, w] of what was joined."""
    profile, lit = both.chunk(2, dim=-1)
    return profile, lit
