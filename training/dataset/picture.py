"""A picture from a stranger's bytes: judged by its header before anything is decoded, and always encoded anew."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

from ..data.index import BROKEN_PICTURE, SMALL_PICTURE, BadSample
from .reasons import MOVING, STRIP, TOO_MANY_PIXELS
from .recipe import Picture

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")


def open_picture(content: bytes, limits: Picture) -> Image.Image:
    """RGB, upright as its EXIF says, its longer side at most limits.side. BadSample with the reason.

    Not for several threads at once: a warning of Pillow's becomes an error here, and Python's filters are global.
    """
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            _judge(picture, limits)
            if picture.format == "JPEG":
                picture.draft("RGB", (limits.side, limits.side))  # large ones are decoded at a half, a quarter, …
            picture = ImageOps.exif_transpose(picture).convert("RGB")
            if max(picture.size) > limits.side:
                picture.thumbnail((limits.side, limits.side), Image.Resampling.LANCZOS)
        except BadSample:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise BadSample(TOO_MANY_PIXELS) from None
        except Exception:  # whatever Pillow's readers come upon
            raise BadSample(BROKEN_PICTURE) from None
    return picture


def _judge(picture: Image.Image, limits: Picture) -> None:
    width, height = picture.size
    if width * height > limits.most_pixels:
        raise BadSample(TOO_MANY_PIXELS)
    if picture.format in ("PNG", "WEBP") and getattr(picture, "is_animated", False):
        raise BadSample(MOVING)
    if min(width, height) < limits.least:
        raise BadSample(SMALL_PICTURE)
    if max(width, height) > limits.strip * min(width, height):
        raise BadSample(STRIP)


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    """A file of the pixels alone: no EXIF, no comment, nothing behind the end."""
    file = io.BytesIO()
    picture.info = {}
    picture.save(file, kind, **options)
    return file.getvalue()
