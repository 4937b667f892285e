"""Maps as pictures."""

from __future__ import annotations

import torch

STOPS = ((0, 0, 20), (70, 10, 110), (190, 50, 80), (250, 150, 30), (255, 255, 190))
"""Dark to bright, evenly spaced; lightness rises all the way, so that it also reads in grey."""


def heat_map(maps: torch.Tensor) -> torch.Tensor:
    """[B, H, W] in 0..1 to an IMAGE [B, H, W, 3] float32."""
    stops = torch.tensor(STOPS, dtype=torch.float32) / 255
    place = maps.float().clamp(0, 1) * (len(STOPS) - 1)
    low = place.floor().long().clamp(max=len(STOPS) - 2)
    return torch.lerp(stops[low], stops[low + 1], (place - low)[..., None])
