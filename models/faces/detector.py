"""The one interface behind which faces are found and parsed, and the choice among the backends and among the faces."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F

from .crop import Box, resize

AUTO, FACEXLIB, BUILT_IN = "auto", "facexlib", "built-in"
DETECTORS = (AUTO, FACEXLIB, BUILT_IN)
ORDERS = ("largest", "smallest", "left to right", "right to left", "top to bottom", "centre-most", "most confident")

DETECTION_MAX, DETECTION_MIN = 1024, 320
"""Longer side, in pixels, of the picture that detectors see: bounds time and memory, and enlarges a tiny photograph."""
SURE = 0.95
"""Score that a face needs when the photograph had to be framed or turned first: those tries invite false alarms."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectedFace:
    """One face, in pixels of the picture at hand.

    box: x0, y0, x1, y1. landmarks: five (x, y): eyes, nose, mouth corners, pairs from the left. score: in 0..1.
    """

    box: Box
    landmarks: tuple[tuple[float, float], ...]
    score: float

    @property
    def area(self) -> float:
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def mapped(self, scale: float, dx: float = 0.0, dy: float = 0.0) -> DetectedFace:
        """The same face in other pixels: p → p · scale + (dx, dy)."""
        x0, y0, x1, y1 = self.box
        return DetectedFace(
            (x0 * scale + dx, y0 * scale + dy, x1 * scale + dx, y1 * scale + dy),
            tuple((x * scale + dx, y * scale + dy) for x, y in self.landmarks),
            self.score,
        )


class FaceDetector(Protocol):
    """Finds upright faces in a picture [3, H, W] in 0..1 whose longer side is at most DETECTION_MAX."""

    name: str

    def detect(self, picture: torch.Tensor) -> list[DetectedFace]: ...


class FaceParser(Protocol):
    """Marks the face's pixels in a square crop [3, S, S] in 0..1: [S, S] in 0..1."""

    name: str

    def parse(self, crop: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class Backend:
    detector: FaceDetector
    parser: FaceParser | None


def choose_backend(name: str, folders: Sequence[Path]) -> Backend:
    """Backend for the combo's value; `folders` are those where facexlib's files may lie.

    "auto" takes what of facexlib is there. Raises ValueError where "facexlib" was asked for and is missing.
    """
    from . import facexlib_backend as facexlib  # here, so that a broken optional package cannot take the pack down
    from .mtcnn import BuiltInDetector

    if name == BUILT_IN:
        return Backend(BuiltInDetector(), None)
    if name == FACEXLIB:
        detector = facexlib.load_detector(folders, required=True)
        parser = facexlib.load_parser(folders)
        if parser is None:
            log.warning(
                "Face Reference: no parsing file of facexlib found (%s); the mask comes from the landmarks.",
                " or ".join(facexlib.PARSING_FILES),
            )
        return Backend(detector, parser)
    return Backend(facexlib.load_detector(folders) or BuiltInDetector(), facexlib.load_parser(folders))


def find_faces(detector: FaceDetector, photo: torch.Tensor) -> tuple[list[DetectedFace], int]:
    """Faces in a photograph [3, H, W] of any size, and the quarter turns (torch.rot90, 0 to 3) it took to see them.

    When nothing is found: once more with a replicated frame (a crop too tight to show a head's outline), then turned.
    Faces are in pixels of the turned photograph.
    """
    faces = _detect(detector, photo)
    if faces:
        return faces, 0
    small, scale = _bounded(photo)
    margin = min(small.shape[-2:]) // 2
    framed = F.pad(small[None], [margin] * 4, mode="replicate")[0]
    faces = [face.mapped(1 / scale, -margin / scale, -margin / scale) for face in _detect(detector, framed, SURE)]
    if faces:
        log.warning(
            "Face Reference: a face was found only after a margin was added; a photograph with more room "
            "around the head works better."
        )
        return faces, 0
    for turns in (2, 1, 3):
        faces = [face.mapped(1 / scale) for face in _detect(detector, torch.rot90(small, turns, (-2, -1)), SURE)]
        if faces:
            log.warning("Face Reference: the face is not upright; the photograph is turned by %d degrees.", turns * 90)
            return faces, turns
    return [], 0


def _bounded(picture: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The picture [3, H, W] with its longer side between DETECTION_MIN and DETECTION_MAX, and its scale."""
    height, width = picture.shape[-2:]
    scale = min(max(height, width, DETECTION_MIN), DETECTION_MAX) / max(height, width)
    return resize(picture, max(1, round(height * scale)), max(1, round(width * scale))), scale


def _detect(detector: FaceDetector, picture: torch.Tensor, sure: float = 0.0) -> list[DetectedFace]:
    """Faces of at least the score `sure`, in the pixels of a picture [3, H, W] of any size."""
    small, scale = _bounded(picture)
    return [face.mapped(1 / scale) for face in detector.detect(small.contiguous()) if face.score >= sure]


def arrange(faces: Sequence[DetectedFace], order: str, height: int, width: int) -> list[DetectedFace]:
    """Faces in the chosen order; equal ones by confidence."""
    keys = {
        "largest": lambda face: -face.area,
        "smallest": lambda face: face.area,
        "left to right": lambda face: face.centre[0],
        "right to left": lambda face: -face.centre[0],
        "top to bottom": lambda face: face.centre[1],
        "centre-most": lambda face: (face.centre[0] - width / 2) ** 2 + (face.centre[1] - height / 2) ** 2,
        "most confident": lambda face: -face.score,
    }
    return sorted(faces, key=lambda face: (keys[order](face), -face.score))
