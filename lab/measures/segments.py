"""What is where in a picture of the portrait world: a small segmenter, and what is read from it.

It stands in for three things that have no free weights: SAM (the classes' overlap), LPIPS (the distance of its inner
features) and Inception (the distribution of its deepest ones).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ...training.files import halved
from ..world.attributes import ATTRIBUTES
from ..world.shade import LABELS

SIDE, MAP = 128, 64
"""Sides of what it sees, and of what it says, pixels."""
WIDTHS = (24, 48, 96, 112)
WORN, HAIR = LABELS.index("worn"), LABELS.index("hair")
WORN_CLASSES = {name: WORN + number for number, name in enumerate(ATTRIBUTES)}
"""Of each attribute: the renderer has one label for all that is worn, its last one; here each has its own."""
CLASSES = WORN + len(ATTRIBUTES)
GROWN = 2
"""Cells by which an attribute's region grows before the rest of the picture is compared."""


def _layer(inputs: int, width: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


class Segmenter(nn.Module):
    """Pictures [B, 3, H, W] in 0..1 to logits [B, CLASSES, 64, 64]. cuts: from which share of the picture on each
    attribute counts as shown."""

    def __init__(self, cuts: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.cuts = dict(cuts or {})
        sizes = (3, *WIDTHS)
        self.down = nn.ModuleList(
            nn.Sequential(_layer(inputs, width, 2), _layer(width, width))
            for inputs, width in zip(sizes, WIDTHS, strict=False)
        )
        self.up = nn.ModuleList(
            _layer(deep + width, width) for deep, width in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(WIDTHS[0], CLASSES, 1)

    def features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        """[B, C, h, w] at 64, 32, 16 and 8 cells a side."""
        if pictures.shape[-2:] != (SIDE, SIDE):
            pictures = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True)
        found, x = [], pictures * 2 - 1
        for layer in self.down:
            x = layer(x)
            found.append(x)
        return found

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        *finer, x = self.features(pictures)
        for layer, side in zip(self.up, reversed(finer), strict=True):
            x = layer(torch.cat([F.interpolate(x, side.shape[-2:]), side], 1))
        return self.head(x)

    @torch.no_grad()
    def labels(self, pictures: torch.Tensor) -> torch.Tensor:
        """[B, 64, 64]: the class of each cell."""
        return self(pictures).argmax(1)

    def save(self, file: str | Path, metadata: Mapping[str, str]) -> None:
        from safetensors.torch import save_file

        tensors = {name: value.contiguous() for name, value in halved(self.state_dict()).items()}
        save_file(tensors, str(file), dict(metadata) | {"cuts": json.dumps(self.cuts)})

    @classmethod
    def load(cls, file: str | Path) -> Segmenter:
        from safetensors import safe_open

        with safe_open(str(file), "pt") as given:
            model = cls(json.loads(given.metadata()["cuts"]))
            state = {name: given.get_tensor(name).float() for name in given.keys()}  # noqa: SIM118
        model.load_state_dict(state, strict=False)
        return model.requires_grad_(False).eval()


def worn_share(labels: torch.Tensor, attribute: str) -> torch.Tensor:
    """[B]: the attribute's share of each picture, of labels [B, h, w]."""
    return (labels == WORN_CLASSES[attribute]).float().mean((1, 2))


def elsewhere(labels: torch.Tensor) -> torch.Tensor:
    """Boolean [B, h, w]: all but what is worn and its surroundings."""
    worn = (labels >= WORN).float()[:, None]
    return F.max_pool2d(worn, 2 * GROWN + 1, 1, GROWN)[:, 0] == 0


@torch.no_grad()
def perceived_distance(
    model: Segmenter, one: torch.Tensor, other: torch.Tensor, where: torch.Tensor | None = None
) -> torch.Tensor:
    """[B]: LPIPS in small, the squared distance of unit-normalised features, mean over places and three levels.

    one, other: pictures [B, 3, H, W]. where: boolean [B, h, w], the places that count.
    """
    levels = []
    for a, b in zip(model.features(one)[:3], model.features(other)[:3], strict=True):
        apart = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square().sum(1)
        weight = torch.ones_like(apart)
        if where is not None:
            weight = F.interpolate(where.float()[:, None], apart.shape[-2:], mode="area")[:, 0]
        levels.append((apart * weight).sum((1, 2)) / weight.sum((1, 2)).clamp_min(1e-6))
    return torch.stack(levels).mean(0)


def overlap(one: torch.Tensor, other: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """[B]: mean intersection over union of the classes in two label maps [B, h, w], but for hair and what is worn, at
    the places that count."""
    result = []
    for a, b, kept in zip(one, other, where, strict=True):
        shares = []
        for label in range(WORN):
            first, second = (a == label) & kept, (b == label) & kept
            union = (first | second).sum()
            if label != HAIR and union:
                shares.append((first & second).sum() / union)
        result.append(torch.stack(shares).mean() if shares else torch.tensor(1.0))
    return torch.stack(result)


def frechet(one: torch.Tensor, other: torch.Tensor) -> float:
    """Fréchet distance of two sets of vectors [N, D] and [M, D], each with more of them than D."""
    means = one.double().mean(0) - other.double().mean(0)
    first, second = (torch.cov(each.double().T) for each in (one, other))
    values, vectors = torch.linalg.eigh(first)
    root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ second @ root).clamp_min(0).sqrt().sum()
    return float(means.square().sum() + first.trace() + second.trace() - 2 * mixed)
