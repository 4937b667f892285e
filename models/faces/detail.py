"""A face cut out of a picture at the size to be painted at, and the painted one put back. Outside of the mask the
picture stays as it was, to the bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .build import FaceResult
from .crop import paste, resize, square_around, take


@dataclass(frozen=True)
class Cut:
    """crop: [1, S, S, 3] in 0..1. mask: [S, S] in 0..1, soft, what may change. box: the square in the picture, which
    may reach outside of it."""

    crop: torch.Tensor
    mask: torch.Tensor
    box: tuple[int, int, int, int]


def cut_out(picture: torch.Tensor, face: FaceResult, side: int, factor: float, grow: float, feather: float) -> Cut:
    """The face of a picture [1, H, W, 3] in a square of `side` pixels, `factor` times as large as its box.

    grow, feather: how far the face's mask is widened and how softly it ends, in shares of the square's side.
    """
    x, y, width, height = face.boxes[0]
    box = square_around((x, y, x + width, y + height), factor)
    crop = resize(take(picture[0].movedim(-1, 0), box), side, side)
    mask = resize(take(face.photo_mask[:1].to(crop), box), side, side)[0]
    return Cut(crop.movedim(0, -1)[None], softened(mask, round(grow * side), feather * side), box)


def softened(mask: torch.Tensor, grow: int, feather: float) -> torch.Tensor:
    """A mask [S, S] widened by `grow` pixels, then blurred: a Gaussian of standard deviation feather / 2 pixels."""
    if grow > 0:
        mask = F.max_pool2d(mask[None, None], 2 * grow + 1, stride=1, padding=grow)[0, 0]
    if feather < 0.5:
        return mask
    reach = round(1.5 * feather)
    places = torch.arange(-reach, reach + 1, dtype=mask.dtype)
    weights = torch.exp(-2 * (places / feather).square())
    weights = (weights / weights.sum()).to(mask)
    padded = F.pad(mask[None, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))[0, 0].clamp(0, 1)


def put_back(picture: torch.Tensor, painted: torch.Tensor, cut: Cut) -> tuple[torch.Tensor, torch.Tensor]:
    """The picture [1, H, W, 3] with the painted crop [1, S, S, 3] laid over it through the mask, and that mask
    [1, H, W] at the picture's size."""
    height, width = picture.shape[1:3]
    mask = paste(cut.mask, cut.box, height, width).to(picture)
    channels = painted[0].movedim(-1, 0).float().cpu()
    face = torch.stack([paste(channel, cut.box, height, width) for channel in channels], dim=-1).to(picture)
    share = mask[None, ..., None]
    return torch.where(share > 0, picture + (face - picture) * share, picture), mask[None]
