"""The picture for people's eyes: the reference's face and a picture's face side by side, and what the measure says."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from .crop import crop_square, resize, square_around
from .likeness import Likeness
from .recogniser import Measure
from .reference import FaceReference

SIDE, STRIP = 256, 34
ROOM = 1.5
"""Side of what is shown, in sides of the face's box."""
SAME, OTHER, NONE = (0, 200, 90), (255, 196, 0), (255, 80, 60)


def draw_comparison(
    reference: FaceReference, picture: torch.Tensor, result: Likeness, measure: Measure, title: str
) -> torch.Tensor:
    """[h, w, 3] in 0..1, of one size for all: the reference's face, the face in a picture [3, H, W] (the whole picture
    where none was found), and below them the title and the result."""
    shown = next((photo for photo in reference.photographs if photo.face_box is not None), reference)
    left = _tile(shown.crop[0].movedim(-1, 0), shown.face_box)
    right = _tile(picture, None if result.face is None else result.face.box)
    sheet = Image.new("RGB", (2 * SIDE, SIDE + STRIP), (24, 24, 24))
    sheet.paste(left, (0, 0))
    sheet.paste(right, (SIDE, 0))
    colour = NONE if result.face is None else SAME if result.same else OTHER
    font = ImageFont.load_default(size=16)
    ImageDraw.Draw(sheet).text((8, SIDE + 8), f"{title}: {result.told(measure)}", fill=colour, font=font)
    return torch.from_numpy(np.array(sheet)).float() / 255


def _tile(picture: torch.Tensor, box: tuple[float, float, float, float] | None) -> Image.Image:
    if box is None:
        box = (0, 0, picture.shape[-1], picture.shape[-2])
        tile = resize(crop_square(picture, square_around(box, 1.0)), SIDE, SIDE)
    else:
        tile = resize(crop_square(picture, square_around(box, ROOM)), SIDE, SIDE)
    return Image.fromarray((tile.movedim(0, -1) * 255).round().byte().numpy())
