"""A picture as the columns see it, each view of it made once."""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..models.faces.crop import crop_square, square_around
from ..models.faces.detector import arrange, find_upright
from ..models.faces.face import DetectedFace, FaceDetector
from ..models.faces.file import open_picture

CROP = 1.4
"""Side of a face crop, in sides of the face's box."""


class Portrait:
    """image: RGB. pixels: [3, H, W] in 0..1. face: the largest sure one, None where there is none."""

    def __init__(self, file: Path, detector: FaceDetector) -> None:
        self.file, self._detector = file, detector

    @cached_property
    def image(self) -> Image.Image:
        return open_picture(self.file)[0]

    @cached_property
    def pixels(self) -> torch.Tensor:
        return torch.from_numpy(np.array(self.image)).movedim(-1, 0).float() / 255

    @cached_property
    def face(self) -> DetectedFace | None:
        faces = [face for face in find_upright(self._detector, self.pixels) if face.sure]
        return arrange(faces, "largest", *self.pixels.shape[-2:])[0] if faces else None

    @cached_property
    def crop(self) -> Image.Image | None:
        """The face with a margin; None without one."""
        if self.face is None:
            return None
        square = crop_square(self.pixels, square_around(self.face.box, CROP))
        return Image.fromarray((square.movedim(0, -1) * 255).round().byte().numpy())


class Album:
    """Reads portraits with one detector; people's photographs are kept."""

    def __init__(self, detector: FaceDetector) -> None:
        self.detector = detector
        self.photo = lru_cache(maxsize=256)(self.open)

    def open(self, file: Path) -> Portrait:
        return Portrait(file, self.detector)
