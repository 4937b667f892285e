"""Faces of the tests' making, photographs without any, and detectors that find what a test says."""

from __future__ import annotations

import torch
from omniportrait.models.faces.face import DetectedFace


def face_at(x: float, y: float, size: float, score: float = 0.99, trust: float = 0.97) -> DetectedFace:
    """A frontal face whose box is 0.8 size x size around (x, y); doubtful below a trust of 0.65."""
    marks = ((-0.2, -0.12), (0.2, -0.12), (0.0, 0.08), (-0.16, 0.27), (0.16, 0.27))
    return DetectedFace(
        (x - 0.4 * size, y - size / 2, x + 0.4 * size, y + size / 2),
        tuple((x + dx * size, y + dy * size) for dx, dy in marks),
        score,
        trust,
        trust >= 0.65,
    )


class Told:
    """A detector that finds the given faces, in pictures that are not resized (longer side 320 to 1024)."""

    name = "told"

    def __init__(self, *faces: DetectedFace) -> None:
        self.faces = list(faces)

    def detect(self, picture: torch.Tensor) -> list[DetectedFace]:
        return self.faces


def grey(height: int = 480, width: int = 640, value: float = 0.25) -> torch.Tensor:
    return torch.full((1, height, width, 3), value)


class Bright:
    """A detector that finds a face around the brightest pixel; none in an even picture."""

    name = "bright"

    def __init__(self, trusts: tuple[float, ...] = (0.97,)) -> None:
        self.trusts = trusts  # by quarter turn

    def detect(self, picture: torch.Tensor) -> list[DetectedFace]:
        value, at = picture[0].flatten().max(0)
        if float(value - picture.min()) < 0.1:
            return []
        y, x = divmod(int(at), picture.shape[-1])
        corner = picture[2, [0, 0, -1, -1], [0, -1, -1, 0]]  # 1 in the upright picture's upper left corner
        return [face_at(x + 0.5, y + 0.5, 80, 0.99, self.trusts[-int(corner.argmax()) % len(self.trusts)])]


def marked(x: int, y: int, height: int = 480, width: int = 640) -> torch.Tensor:
    """A photograph in which `Bright` finds a face, and whose upper left corner is known."""
    photo = grey(height, width, 0.0)
    photo[0, y, x, 0] = photo[0, 0, 0, 2] = 1.0
    return photo
