"""The latents of a micro-batch of pictures, from the cache or computed now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from .samples import SHRINK

if TYPE_CHECKING:
    from ..base import Base


class Pictured(Protocol):
    """picture: uint8 [3, H, W], empty where `ready`, what the cache holds, has its latents."""

    picture: torch.Tensor
    ready: Mapping[str, torch.Tensor] | None


def latents_of(
    samples: Sequence[Pictured], size: tuple[int, int], weights: Sequence[float], base: Base
) -> torch.Tensor:
    """[B, C, h, w] of samples on one grid, `size`; zeros for those of weight 0, which are bad, unless cached."""
    latents = torch.zeros(len(samples), base.channels, *size)
    ready = [i for i, sample in enumerate(samples) if sample.ready is not None]
    seen = [i for i, sample in enumerate(samples) if sample.picture.shape[-1] == size[1] * SHRINK and weights[i]]
    if ready:
        latents[ready] = torch.stack([samples[i].ready["latents"].float() for i in ready])
    if seen:
        latents[seen] = base.latents(torch.stack([samples[i].picture for i in seen]))
    return latents
