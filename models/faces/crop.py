"""Square crops: boxes on whole pixels, replicated borders, bounded memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels, half open: a box of one pixel is (0, 0, 1, 1)."""

MAX_SIDE = 1024
MIN_SIDE = 256


def square_around(box: Box, factor: float) -> tuple[int, int, int, int]:
    """Square on whole pixels, centred on `box`, whose side is `factor` times the larger side of it."""
    side = max(1, round(factor * max(box[2] - box[0], box[3] - box[1])))
    x0 = round((box[0] + box[2] - side) / 2)
    y0 = round((box[1] + box[3] - side) / 2)
    return x0, y0, x0 + side, y0 + side


def take(picture: torch.Tensor, box: tuple[int, int, int, int]) -> torch.Tensor:
    """Pixels of `box` from a picture [C, H, W]; what lies outside repeats the nearest border pixel.

    Replicated, not reflected: a mirrored border would show the model a second, reversed ear or eye to match against.
    """
    height, width = picture.shape[-2:]
    columns = torch.arange(box[0], box[2], device=picture.device).clamp(0, width - 1)
    rows = torch.arange(box[1], box[3], device=picture.device).clamp(0, height - 1)
    left, top = max(0, min(box[0], width - 1)), max(0, min(box[1], height - 1))
    near = picture[..., top : max(box[3], top + 1), left : max(box[2], left + 1)]  # or whole rows would be copied first
    return near.index_select(-2, rows - top).index_select(-1, columns - left)


def resize(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Antialiased resize of [C, H, W], values kept in 0..1."""
    if picture.shape[-2:] == (height, width):
        return picture
    return F.interpolate(picture[None], (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)


def crop_square(picture: torch.Tensor, box: tuple[int, int, int, int]) -> torch.Tensor:
    """Crop [C, S, S] of a picture [C, H, W] at its own resolution, S brought into MIN_SIDE..MAX_SIDE.

    Very large crops are averaged over whole blocks first, so that one far larger than an 8k photograph stays bounded.
    """
    side = box[2] - box[0]
    target = min(max(side, MIN_SIDE), MAX_SIDE)
    blocks = side // (2 * MAX_SIDE)
    if blocks > 1:
        picture = F.avg_pool2d(picture[None], blocks, ceil_mode=True)[0]
        x0, y0, reduced = round(box[0] / blocks), round(box[1] / blocks), round(side / blocks)
        box = (x0, y0, x0 + reduced, y0 + reduced)
    return resize(take(picture, box), target, target)


def inside(box: tuple[int, int, int, int], height: int, width: int, side: int) -> torch.Tensor:
    """Mask [side, side] of the crop's pixels that come from the photograph and not from its replicated border."""
    centres = (torch.arange(side) + 0.5) * ((box[2] - box[0]) / side)
    columns, rows = centres + box[0], centres + box[1]
    return ((rows > 0) & (rows < height))[:, None].float() * ((columns > 0) & (columns < width))[None].float()


def paste(mask: torch.Tensor, box: tuple[int, int, int, int], height: int, width: int) -> torch.Tensor:
    """A crop's mask [S, S] in its place in the photograph: [height, width], 0 outside of `box`.

    Only what lies in the photograph is computed, however large the box.
    """
    x0, y0, x1, y1 = box
    size = min(y1 - y0, mask.shape[-2]), min(x1 - x0, mask.shape[-1])
    mask = F.interpolate(mask[None, None].float(), size, mode="bilinear", antialias=True)[0, 0]
    whole = torch.zeros(height, width)
    top, left, bottom, right = max(y0, 0), max(x0, 0), min(y1, height), min(x1, width)
    if top < bottom and left < right:
        rows = _stretched(mask, y0, y1, top, bottom)
        whole[top:bottom, left:right] = _stretched(rows.T, x0, x1, left, right).T.clamp(0, 1)
    return whole


def _stretched(values: torch.Tensor, start: int, end: int, first: int, last: int) -> torch.Tensor:
    """Rows first..last of [N, M] values that are spread, by linear interpolation, over the rows start..end."""
    places = (torch.arange(first, last, dtype=torch.float64) + 0.5 - start) * (len(values) / (end - start)) - 0.5
    below = places.clamp(0, len(values) - 1).floor().long()
    above = (below + 1).clamp(max=len(values) - 1)
    share = (places - below).clamp(0, 1).to(values)[:, None]
    return values[below] * (1 - share) + values[above] * share


def turned_back(box: Box, turns: int, height: int, width: int) -> Box:
    """A box of a picture that torch.rot90 has turned, height x width now, in pixels of the picture before."""
    for _ in range(turns % 4):
        box = (height - box[3], box[0], height - box[1], box[2])
        height, width = width, height
    return box
