"""What a method has to know of a loaded model, whatever its family.

Another UNet is one new file beside unet.py, with a class that answers these questions, and one more name in
`family_of`. What a DiT needs besides is in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from .attention import AttentionSites, BlockKey
from .unet import UNetFamily

LATENT_SCALE = 8
"""Pixels to a latent cell, with the VAEs of every family."""


def picture_size(latent: torch.Tensor) -> tuple[int, int]:
    """(H, W) in pixels of a latent [..., h, w]."""
    return latent.shape[-2] * LATENT_SCALE, latent.shape[-1] * LATENT_SCALE


class Family(Protocol):
    """The facts of one loaded model.

    base: ComfyUI's BaseModel. net: its network, without torch.compile. text_width: of the text
    that it reads. recomputed: classes of the blocks that checkpointing computes again.
    """

    base: torch.nn.Module
    net: torch.nn.Module
    text_width: int
    recomputed: Sequence[str]

    def feature_block(self, requested: int) -> int:
        """The number of the block whose result is the feature; -1 chooses. Raises: ValueError with the range."""

    def layers_of(self, net: torch.nn.Module, block: int) -> dict[str, torch.nn.Module]:
        """The layers of a feature block of `net`, a private copy, run in their order: a tap is one more at the end."""

    def sites(self, block: int, latent_size: tuple[int, int]) -> AttentionSites:
        """Which transformer blocks up to a feature block give the maps. Raises: ValueError where none can."""

    def self_attention(self, finest: int | None) -> tuple[BlockKey, ...]:
        """The transformer blocks at the finest so many levels of resolution (None: at all), in their order."""

    def cross_attention(self) -> tuple[BlockKey, ...]:
        """Every transformer block that reads the text, in their order."""

    def is_large(self, block: int, batch: int, latent_size: tuple[int, int], device: torch.device) -> bool:
        """Whether a pass with a gradient as far as a block takes more than its share of the free memory."""


def family_of(patcher: object) -> Family:
    """The family of a MODEL. Raises: ValueError, a sentence for the user, for models of none."""
    return UNetFamily.of(patcher)
