"""The picture for people's eyes: the photograph with every face found, numbered, and the crop that is used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .crop import Box, resize
from .face import DetectedFace

MAX_SIDE = 1024
OTHER, USED, DOUBTFUL, CROP = (255, 196, 0), (0, 220, 90), (255, 80, 60), (0, 170, 255)


def draw_overview(
    photo: torch.Tensor, faces: Sequence[DetectedFace], used: int | None, crop: Box, note: str = ""
) -> torch.Tensor:
    """IMAGE [1, h, w, 3], at most MAX_SIDE pixels: faces boxed and numbered in their order, `used` in green.

    Doubtful ones are red with a question mark. The crop is drawn in blue, as far as it lies in the photograph
    [3, H, W]; all boxes are in the photograph's pixels. note: a line along the lower edge.
    """
    height, width = photo.shape[-2:]
    scale = min(1.0, MAX_SIDE / max(height, width))
    small = resize(photo, max(1, round(height * scale)), max(1, round(width * scale)))
    picture = Image.fromarray((small.permute(1, 2, 0) * 255).round().byte().numpy())
    draw = ImageDraw.Draw(picture)
    line = max(1, round(max(picture.size) / 300))
    font = ImageFont.load_default(size=max(10, round(max(picture.size) / 28)))
    seen = (max(0, crop[0]), max(0, crop[1]), min(width, crop[2]), min(height, crop[3]))
    _frame(draw, seen, scale, CROP, line)
    for index, face in enumerate(faces):
        colour = USED if index == used else OTHER if face.sure else DOUBTFUL
        _frame(draw, face.box, scale, colour, line * (2 if index == used else 1))
        corner = (max(0.0, face.box[0] * scale), max(0.0, face.box[1] * scale))
        _label(draw, corner, str(index) if face.sure else f"{index}? doubtful", colour, font)
    if note:
        _label(draw, (0.0, max(0.0, picture.height - 1.5 * font.size)), note, CROP, font)
    return torch.from_numpy(np.array(picture)).float().div(255)[None]


def _label(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    x0, y0, x1, y1 = draw.textbbox(corner, text, font=font)
    draw.rectangle((*corner, x1 + x0 - corner[0], y1 + y0 - corner[1]), fill=colour)
    draw.text(corner, text, fill=(0, 0, 0), font=font)


def _frame(draw: ImageDraw.ImageDraw, box: Box, scale: float, colour: tuple[int, int, int], line: int) -> None:
    x0, y0, x1, y1 = (value * scale for value in box)
    draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=line)
