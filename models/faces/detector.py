"""The one interface behind which faces are found and parsed, and the choice among the backends and among the faces."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from . import facexlib_backend as facexlib
from .crop import resize
from .face import DetectedFace, FaceDetector, FaceParser
from .mtcnn import BuiltInDetector

AUTO, FACEXLIB, BUILT_IN = "auto", "facexlib", "built-in"
DETECTORS = (AUTO, FACEXLIB, BUILT_IN)
ORDERS = ("largest", "smallest", "left to right", "right to left", "top to bottom", "centre-most", "most confident")

DETECTION_MAX, DETECTION_MIN = 1024, 320
"""Longer side, in pixels, of the picture that detectors see: bounds time and memory, and enlarges a tiny photograph."""
CERTAIN = 0.9
"""Trust in an upright find from which the photograph is not turned."""
TURNED, MARGIN = 0.8, 0.05
"""Trust that a find needs in a turned photograph, which invites false alarms, and by how much more than upright."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    detector: FaceDetector
    parser: FaceParser | None


def choose_backend(name: str, folders: Sequence[Path]) -> Backend:
    """Backend for the combo's value; `folders` are those where facexlib's files may lie.

    "auto" takes what of facexlib is there. Raises ValueError where "facexlib" was asked for and is missing.
    """
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

    All four turns compete by the most trusted face, with a margin for upright. Faces are in pixels of the turned
    photograph.
    """
    upright = find_upright(detector, photo)
    trust = _trust(upright)
    if trust >= CERTAIN:
        return upright, 0
    small, scale = _bounded(photo)
    views = {turns: detector.detect(torch.rot90(small, turns, (-2, -1)).contiguous()) for turns in (2, 1, 3)}
    turns = max(views, key=lambda each: _trust(views[each]))
    sure = any(face.sure for face in views[turns])
    if not sure or _trust(views[turns]) < max(TURNED, trust + MARGIN):
        return upright, 0
    log.warning("Face Reference: the face is not upright; the photograph is turned by %d degrees.", turns * 90)
    return [face.mapped(1 / scale) for face in views[turns]], turns


def find_upright(detector: FaceDetector, photo: torch.Tensor) -> list[DetectedFace]:
    """Faces in a photograph [3, H, W] as it stands.

    Without a sure one: once more with a replicated frame, for a crop may be too tight to show a head's outline.
    """
    faces = _detect(detector, photo)
    if any(face.sure for face in faces):
        return faces
    small, scale = _bounded(photo)
    margin = min(small.shape[-2:]) // 2
    framed = _detect(detector, F.pad(small[None], [margin] * 4, mode="replicate")[0])
    if not any(face.sure for face in framed):
        return faces
    log.warning(
        "Face Reference: a face was found only after a margin was added; a photograph with more room "
        "around the head works better."
    )
    return [face.mapped(1 / scale, -margin / scale, -margin / scale) for face in framed]


def _trust(faces: Sequence[DetectedFace]) -> float:
    return max((face.trust for face in faces), default=0.0)


def _bounded(picture: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The picture [3, H, W] with its longer side between DETECTION_MIN and DETECTION_MAX, and its scale."""
    height, width = picture.shape[-2:]
    scale = min(max(height, width, DETECTION_MIN), DETECTION_MAX) / max(height, width)
    return resize(picture, max(1, round(height * scale)), max(1, round(width * scale))), scale


def _detect(detector: FaceDetector, picture: torch.Tensor) -> list[DetectedFace]:
    """Faces in the pixels of a picture [3, H, W] of any size."""
    small, scale = _bounded(picture)
    return [face.mapped(1 / scale) for face in detector.detect(small.contiguous())]


def arrange(faces: Sequence[DetectedFace], order: str, height: int, width: int) -> list[DetectedFace]:
    """Faces in the chosen order, the doubtful ones behind the sure; equal ones by confidence."""
    keys = {
        "largest": lambda face: -face.area,
        "smallest": lambda face: face.area,
        "left to right": lambda face: face.centre[0],
        "right to left": lambda face: -face.centre[0],
        "top to bottom": lambda face: face.centre[1],
        "centre-most": lambda face: (face.centre[0] - width / 2) ** 2 + (face.centre[1] - height / 2) ** 2,
        "most confident": lambda face: -face.score,
    }
    return sorted(faces, key=lambda face: (not face.sure, keys[order](face), -face.score))
