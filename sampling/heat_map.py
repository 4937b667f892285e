"""Attention maps as pictures at the picture's size."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..backbone.family import picture_size

STOPS = ((0, 0, 20), (70, 10, 110), (190, 50, 80), (250, 150, 30), (255, 255, 190))
"""Dark to bright, evenly spaced; lightness rises all the way, so that it also reads in grey."""


def of_person(maps: torch.Tensor, person: int, mode: str) -> torch.Tensor:
    """[K, B, h, w] on the latent's grid to [B, H, W] at the picture's size: of one person from 1 to K, or of all at 0.

    mode: F.interpolate's. Raises: ValueError when there is no such person.
    """
    if person > len(maps):
        raise ValueError(
            f"There is no person {person}: the conditioning names {len(maps)}; choose 1 to {len(maps)}, or 0 for "
            "everyone."
        )
    chosen = maps if person == 0 else maps[person - 1 : person]
    return F.interpolate(chosen.amax(dim=0)[:, None], size=picture_size(maps), mode=mode)[:, 0]


def heat_map(maps: torch.Tensor) -> torch.Tensor:
    """[B, H, W] in 0..1 to an IMAGE [B, H, W, 3] float32."""
    stops = torch.tensor(STOPS, dtype=torch.float32) / 255
    place = maps.float().clamp(0, 1) * (len(STOPS) - 1)
    low = place.floor().long().clamp(max=len(STOPS) - 2)
    return torch.lerp(stops[low], stops[low + 1], (place - low)[..., None])
