"""A face that a detector found, and what detectors and parsers are to the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch

from .crop import Box


@dataclass(frozen=True)
class DetectedFace:
    """One face, in pixels of the picture at hand.

    box: x0, y0, x1, y1. landmarks: five (x, y): eyes, nose, mouth corners, pairs from the left. score: in 0..1.
    trust: in 0..1, how far the detector stands by its find on a second look; it compares views of one photograph.
    sure: False for a find that is as likely a wheel or a shoulder as a face.
    """

    box: Box
    landmarks: tuple[tuple[float, float], ...]
    score: float
    trust: float = 1.0
    sure: bool = True

    @property
    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def mapped(self, scale: float, dx: float = 0.0, dy: float = 0.0) -> DetectedFace:
        """The same face in other pixels: p → p · scale + (dx, dy)."""
        x0, y0, x1, y1 = self.box
        return replace(
            self,
            box=(x0 * scale + dx, y0 * scale + dy, x1 * scale + dx, y1 * scale + dy),
            landmarks=tuple((x * scale + dx, y * scale + dy) for x, y in self.landmarks),
        )


class FaceDetector(Protocol):
    """Finds upright faces in a picture [3, H, W] in 0..1 whose longer side is at most detector.DETECTION_MAX."""

    name: str

    def detect(self, picture: torch.Tensor) -> list[DetectedFace]: ...


class FaceParser(Protocol):
    """Marks the face's pixels in a square crop [3, S, S] in 0..1: [S, S] in 0..1."""

    name: str

    def parse(self, crop: torch.Tensor) -> torch.Tensor: ...
