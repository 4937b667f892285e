"""Is the mole there, at its place on the face: read from the picture itself, by no network.

A known mole is carried from a reference portrait to the picture by the landmarks of both. There a small disk is
compared with the skin in a ring around it, in units of that skin's own deviation, and the best place nearby counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .geometry import affine, moved

SAMPLES = 4
"""Samples along one radius of the mole, whatever that is in pixels."""
RING = (1.7, 2.8)
"""The skin around it, in radii."""
SEARCH = 1.5
"""How far from its computed place, in radii, the mole may lie: landmarks are carried as if the face were flat."""
FLOOR = 0.02
"""Least deviation of skin, of a brightness in 0..1: a perfectly smooth cheek would make every shade a mole."""
MIN_RADIUS = 1.5
"""Pixels. A smaller disk would be a single pixel's noise."""


@dataclass(frozen=True)
class KnownMoles:
    """The moles of a person: `places` [K, 2] and `radii` [K] in the pixels of a portrait with `landmarks` [5, 2].
    The first pixel's centre is (0.5, 0.5)."""

    landmarks: torch.Tensor
    places: torch.Tensor
    radii: torch.Tensor

    @classmethod
    def of(cls, description: Mapping) -> KnownMoles:
        """From a rendered portrait's description: the moles that can be seen in it."""
        moles = [d for d in description["details"] if d["kind"] == "mole" and d["visible"]]
        return cls(
            torch.tensor(description["landmarks"], dtype=torch.float32),
            torch.tensor([(d["x"], d["y"]) for d in moles], dtype=torch.float32).reshape(-1, 2),
            torch.tensor([d["radius"] for d in moles], dtype=torch.float32),
        )

    def carried(self, landmarks: torch.Tensor) -> KnownMoles:
        """Where the same moles should lie in a picture with these landmarks [5, 2]."""
        transform = affine(self.landmarks[None], landmarks[None])
        growth = torch.linalg.det(transform[0, :, :2]).abs().sqrt()
        return KnownMoles(landmarks, moved(self.places[None], transform)[0], self.radii * growth)

    def chosen(self, indices: Sequence[int]) -> KnownMoles:
        """Only those with these indices."""
        indices = list(indices)
        return KnownMoles(self.landmarks, self.places[indices], self.radii[indices])


def contrasts(picture: torch.Tensor, moles: KnownMoles, search: float = SEARCH) -> torch.Tensor:
    """[K] how much darker than the skin around it the picture [3, H, W] in 0..1 is at each mole's place.

    In units of that skin's standard deviation; near 0 on bare skin, above the calibrated threshold on a mole. The
    largest value within `search` radii of the place counts. `moles` are in this picture's pixels.
    """
    if not len(moles.radii):
        return torch.zeros(0)
    patches, reach = _patches(picture, moles, search)
    disk, ring = (kernel.to(patches) for kernel in _kernels())
    crop = (ring.shape[-1] - disk.shape[-1]) // 2
    inner = F.conv2d(patches, disk)[..., crop:-crop, crop:-crop]
    outer, square = F.conv2d(patches, ring), F.conv2d(patches.square(), ring)
    deviation = (square - outer.square()).clamp(min=0).sqrt().clamp(min=FLOOR)
    steps = torch.arange(-reach, reach + 1)
    near = steps[:, None].square() + steps.square() <= reach**2
    return ((outer - inner) / deviation).squeeze(1)[:, near].amax(1)


def _patches(picture: torch.Tensor, moles: KnownMoles, search: float) -> tuple[torch.Tensor, int]:
    """[K, 1, S, S] brightness around each place at SAMPLES to a radius, and the search's reach in samples."""
    reach = round(search * SAMPLES)
    half = reach + math.ceil(RING[1] * SAMPLES)
    steps = torch.arange(-half, half + 1, dtype=torch.float32) / SAMPLES
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
    points = moles.places[:, None, None] + offsets * moles.radii.clamp(min=MIN_RADIUS)[:, None, None, None]
    height, width = picture.shape[-2:]
    grid = points / torch.tensor([width, height]) * 2 - 1
    brightness = (picture * picture.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)[None, None]
    brightness = brightness.expand(len(grid), -1, -1, -1)
    return F.grid_sample(brightness, grid.to(picture), padding_mode="border", align_corners=False), reach


def _kernels() -> tuple[torch.Tensor, torch.Tensor]:
    """Means over the disk and over the ring: [1, 1, D, D] and [1, 1, R, R], each of sum 1."""
    kernels = []
    for low, high in ((0.0, 1.0), RING):
        half = math.ceil(high * SAMPLES)
        steps = torch.arange(-half, half + 1, dtype=torch.float32) / SAMPLES
        distance = (steps[:, None].square() + steps.square()).sqrt()
        inside = ((distance >= low) & (distance <= high)).float()
        kernels.append((inside / inside.sum())[None, None])
    return kernels[0], kernels[1]
