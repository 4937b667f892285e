"""The portrait world's CLIP: pictures as latents and words in one space, small enough to be learnt in two minutes.

A tower of convolutions looks at latents; each word has a vector, and a text's is the sum of its words'. No decoder
stands between the loss and the latents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

WIDTHS, SIZE = (48, 96, 128), 64
MARK = "omniportrait.latent_towers"


class LatentTowers(nn.Module):
    """words: those that have a vector, each one or several words of a text."""

    def __init__(self, words: Sequence[str], channels: int = 4) -> None:
        super().__init__()
        layers, inputs = [], channels
        for width in WIDTHS:
            layers += [nn.Conv2d(inputs, width, 3, 2, 1), nn.GroupNorm(8, width), nn.SiLU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(8, width), nn.SiLU()]
            inputs = width
        self.body, self.head = nn.Sequential(*layers), nn.Linear(2 * inputs, SIZE)
        self.words = list(words)
        self.vectors = nn.Parameter(torch.randn(len(words), SIZE) / SIZE**0.5)

    def image(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, C, h, w] to unit vectors [B, SIZE]."""
        features = self.body(latents.float())
        return F.normalize(self.head(torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)), dim=1)

    def text(self, phrase: str) -> torch.Tensor:
        """Unit vector [SIZE] of the known words in a text. ValueError if there is none."""
        found = [i for i, word in enumerate(self.words) if word in phrase.lower()]
        if not found:
            raise ValueError(f'These towers know no word of "{phrase}": they know {", ".join(self.words)}.')
        return F.normalize(F.normalize(self.vectors[found], dim=1).sum(0), dim=0)

    def save(self, file: Path, metadata: Mapping[str, str]) -> None:
        from safetensors.torch import save_file

        told = {MARK: json.dumps(self.words)} | dict(metadata)
        save_file({name: value.half().contiguous() for name, value in self.state_dict().items()}, str(file), told)

    @classmethod
    def load(cls, file: Path) -> LatentTowers:
        from safetensors import safe_open

        with safe_open(str(file), "pt") as opened:
            towers = cls(json.loads(opened.metadata()[MARK]))
            towers.load_state_dict({name: opened.get_tensor(name).float() for name in towers.state_dict()})
        return towers.requires_grad_(False).eval()


def are_latent_towers(file: Path) -> bool:
    from safetensors import safe_open

    try:
        with safe_open(str(file), "pt") as opened:
            return MARK in (opened.metadata() or {})
    except Exception:  # another kind of file
        return False
