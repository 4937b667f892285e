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

from ...models.faces.geometry import moved, similarity

SAMPLES = 4
"""Samples along one radius of the mole, whatever that is in pixels."""
CORE, RING = 0.4, (1.0, 1.5)
"""Radii of the disk and of the ring of skin. The disk is small since a mole turned away is a narrow ellipse."""
DARK_SHARE = 0.1
"""The darkest tenth of the ring is left out, and the disk must be darker than what remains: on the edge of a shadow,
a brow or the hair a good part of the ring is dark too."""
SEARCH = 1.8
"""How far from its computed place, in radii, the mole may lie: it is carried as if the face were flat, and lands 1.0
radii off on average, 2.4 at worst (95%)."""
FLOOR = 0.1
"""Least deviation of skin, in shares of its brightness: a perfectly smooth cheek would make every shade a mole."""
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
        transform = similarity(self.landmarks[None], landmarks[None])
        growth = torch.linalg.det(transform[0, :, :2]).abs().sqrt()
        return KnownMoles(landmarks, moved(self.places[None], transform)[0], self.radii * growth)

    def chosen(self, indices: Sequence[int]) -> KnownMoles:
        """Only those with these indices."""
        indices = list(indices)
        return KnownMoles(self.landmarks, self.places[indices], self.radii[indices])


def contrasts(picture: torch.Tensor, moles: KnownMoles, search: float = SEARCH) -> torch.Tensor:
    """[K] how much darker than the skin around it the picture [3, H, W] in 0..1 is at each mole's place.

    In units of that skin's deviation; near 0 on bare skin, above the calibrated threshold on a mole. The largest value
    within `search` radii of the place counts. `moles` are in this picture's pixels.
    """
    if not len(moles.radii):
        return torch.zeros(0)
    reach, side = round(search * SAMPLES), 2 * math.ceil(RING[1] * SAMPLES) + 1
    around = F.unfold(_patches(picture, moles, side + 2 * reach), side)  # [K, samples, candidate places]
    around = around[..., _distance(2 * reach + 1).flatten() * SAMPLES <= reach]
    distance = _distance(side).flatten()
    disk = around[:, distance <= CORE].mean(1)
    ring = around[:, (distance >= RING[0]) & (distance <= RING[1])]
    dark, low, middle, high = torch.quantile(ring, ring.new_tensor([DARK_SHARE, 0.25, 0.5, 0.75]), dim=1)
    deviation = torch.maximum((high - low) / 1.349, FLOOR * middle).clamp(min=1e-3)
    return ((dark - disk) / deviation).amax(1)


def _distance(side: int) -> torch.Tensor:
    """[side, side] of each sample from the middle one, in radii of the mole."""
    steps = (torch.arange(side) - side // 2) / SAMPLES
    return (steps[:, None].square() + steps.square()).sqrt()


def _patches(picture: torch.Tensor, moles: KnownMoles, side: int) -> torch.Tensor:
    """[K, 1, side, side] brightness around each place, SAMPLES to a radius."""
    steps = (torch.arange(side) - side // 2) / SAMPLES
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
    points = moles.places[:, None, None] + offsets * moles.radii.clamp(min=MIN_RADIUS)[:, None, None, None]
    grid = points / torch.tensor([picture.shape[-1], picture.shape[-2]]) * 2 - 1
    brightness = (picture * picture.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)[None, None]
    brightness = brightness.expand(len(grid), -1, -1, -1)
    return F.grid_sample(brightness, grid.to(picture), padding_mode="border", align_corners=False)
