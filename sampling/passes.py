"""What of the picture the guided pass sees: all of it, all of it at half resolution, or the face alone.

Each is a view of ComfyUI's noisy x that autograd follows back to x, so the gradient needs nothing further.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F

from ..backbone.tensors import map_tensors

GuidedPass = Literal["full", "shared", "half", "crop"]
"""`shared` sees all, in ComfyUI's own call (sampling/shared_call.py)."""

CELL = 8
"""Latent pixels that sides of a crop are multiples of: what an SD1.5 UNet halves three times."""
MARGIN = 0.5
"""Width of the border around the faces, as a share of their box."""
LARGEST_CROP = 0.6
"""A crop over a larger share of the picture is not worth its borders."""

HALVINGS = (1, 2, 4, 8)
"""How much coarser than the latent a UNet's levels are; sides that do not divide keep their last cell."""

Box = tuple[int, int, int, int]
"""(h, w, y, x) in latent pixels, as ComfyUI writes an area."""


def halve(x: torch.Tensor) -> torch.Tensor:
    """Mean of 2x2 cells of [B, C, H, W]; odd sides keep their last half cell."""
    return F.avg_pool2d(x, 2, ceil_mode=True)


def halved(x: torch.Tensor, sigma: torch.Tensor, arguments: dict) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """The same call of the model at half resolution. The mean of four independent noises has half their deviation, so
    the model is told sigma / 2 and sees a smaller picture that is noised exactly so."""
    return halve(x), sigma / 2, spatially(arguments, halve)


def cut(x: torch.Tensor, box: Box) -> torch.Tensor:
    """A box of [..., H, W]."""
    h, w, y, left = box
    return x[..., y : y + h, left : left + w]


def cropped(arguments: dict, width: int, box: Box) -> dict:
    """What of a call's arguments belongs to a box of a latent of this width; ControlNet's residuals are coarser than
    the latent."""

    def part(value: torch.Tensor) -> torch.Tensor:
        down = next((d for d in HALVINGS if -(-width // d) == value.shape[-1]), round(width / value.shape[-1]))
        h, w, y, x = box
        return cut(value, (-(-h // down), -(-w // down), y // down, x // down))

    return spatially(arguments, part)


def spatially(arguments: dict, change: Callable[[torch.Tensor], torch.Tensor]) -> dict:
    """Apply `change` to what has the picture's shape among apply_model's arguments: the channels that inpaint models
    read, and ControlNet's residuals at any level."""
    return {
        name: map_tensors(value, change) if name in ("c_concat", "control") else value
        for name, value in arguments.items()
    }


def face_box(mask: torch.Tensor) -> Box | None:
    """The box around all faces of a batch with its margin, on cells of CELL: mask boolean [B, 1, H, W], CPU.

    None where there is no face, or where a crop would spare too little.
    """
    flat = mask.flatten(0, 1).any(dim=0)
    if not flat.any():
        return None
    (h, y), (w, x) = _span(flat.any(dim=1)), _span(flat.any(dim=0))
    if h * w > LARGEST_CROP * flat.numel():
        return None
    return h, w, y, x


def _span(line: torch.Tensor) -> tuple[int, int]:
    """Length and start of the cells that hold the True part of a boolean [N] and its margin."""
    places = line.nonzero()[:, 0]
    first, last = int(places[0]), int(places[-1]) + 1
    margin = max(round(MARGIN * (last - first) / 2), 1)
    start = max(first - margin, 0) // CELL * CELL
    end = min(-(-(last + margin) // CELL) * CELL, len(line))
    return end - start, start
