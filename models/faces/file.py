"""A picture's file as people see it in a viewer: upright, 8 bits, cut-outs over grey."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

GREY = 0.5
"""Behind transparent pixels, whose own colour nobody ever sees."""
RANGES = (1, 255, 65535, 2**31 - 1, 2**32 - 1)
DEEP = ("I", "F")


def open_picture(path: Path) -> tuple[Image.Image, str]:
    """The RGB picture, and what was done to its values or "".

    16-bit, 32-bit and float pictures are scaled by their format's range instead of clipped. EXIF turns the picture and
    goes no further. Raises OSError, or whatever else Pillow's readers come upon.
    """
    with Image.open(path) as file:
        picture = ImageOps.exif_transpose(file)
        picture.load()
    note = ""
    if picture.mode.partition(";")[0] in DEEP:
        picture, note = _scaled(picture)
    if picture.has_transparency_data:
        picture = _over_grey(picture.convert("RGBA"))
    return picture.convert("RGB"), note


def _scaled(picture: Image.Image) -> tuple[Image.Image, str]:
    """A grey picture of more than 8 bits as one of 8."""
    kind = {"F": "float", "I": "32-bit"}.get(picture.mode, "16-bit")
    values = np.nan_to_num(np.asarray(picture, np.float64), posinf=0, neginf=0)
    full = 65535 if kind == "16-bit" else _range_of(values)
    pixels = (values / full * 255).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels), f"{kind}, scaled from 0 to {full}"


def _range_of(values: np.ndarray) -> int:
    """The smallest usual range that holds the values; a few highlights above 1 do not make one of 255."""
    if np.median(values) <= 1 and np.percentile(values, 90) <= 2:
        return 1
    return next((each for each in RANGES if values.max() <= each), RANGES[-1])


def _over_grey(picture: Image.Image) -> Image.Image:
    """RGBA over mid-grey, as Face Reference lays an IMAGE with alpha."""
    pixels = np.asarray(picture, np.float64) / 255
    alpha = pixels[..., 3:]
    laid = pixels[..., :3] * alpha + GREY * (1 - alpha)
    return Image.fromarray((laid * 255).round().astype(np.uint8))
