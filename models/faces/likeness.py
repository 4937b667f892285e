"""How alike pictures are to a reference face: the numbers behind Identity Score and Best of Batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from .detector import arrange, find_upright
from .face import DetectedFace, FaceDetector
from .recogniser import Measure, Recogniser
from .reference import FaceReference

LARGEST, MOST_ALIKE = "largest", "most alike"
CHOICES = (LARGEST, MOST_ALIKE)


@dataclass(frozen=True)
class Likeness:
    """A picture's face beside the reference. face: in the picture's pixels, None where there is none; value: of the
    measure, its worst without a face."""

    face: DetectedFace | None
    value: float
    same: bool

    def told(self, measure: Measure) -> str:
        """For people: "distance 0.42, same person"."""
        if self.face is None:
            return "no face found"
        return f"{measure.kind} {self.value:.3f}, {'same person' if self.same else 'somebody else'}"


def reference_vector(recogniser: Recogniser, reference: FaceReference) -> torch.Tensor:
    """[D] of a reference: the mean over its photographs. ValueError where none of them shows a face."""
    vectors = []
    for photo in reference.photographs:
        if photo.landmarks is not None:
            face = DetectedFace(photo.face_box, photo.landmarks, 1.0)
            vectors.append(recogniser.embed(photo.crop[0].movedim(-1, 0), face))
    if not vectors:
        raise ValueError(
            "The face reference holds no face that was found, so nothing can be compared with it: connect a Face "
            "Reference of a photograph that shows the face."
        )
    if recogniser.measure.kind == "cosine":
        vectors = [F.normalize(vector, dim=0) for vector in vectors]
    return torch.stack(vectors).mean(0)


def likeness(
    recogniser: Recogniser, detector: FaceDetector, target: torch.Tensor, picture: torch.Tensor, choice: str = LARGEST
) -> Likeness:
    """Of a picture [3, H, W] in 0..1 to a target [D]; choice: which of several faces counts. ValueError for another."""
    if choice not in CHOICES:
        raise ValueError(f"face is {choice!r}, but there are only {', '.join(CHOICES)}.")
    measure = recogniser.measure
    faces = arrange([face for face in find_upright(detector, picture) if face.sure], "largest", *picture.shape[-2:])
    found = [(face, measure.value(recogniser.embed(picture, face), target)) for face in faces[: _count(choice)]]
    if not found:
        return Likeness(None, measure.worst, False)
    face, value = min(found, key=lambda each: measure.order(each[1]))
    return Likeness(face, value, measure.same(value))


def _count(choice: str) -> int | None:
    return 1 if choice == LARGEST else None


def with_threshold(results: Sequence[Likeness], measure: Measure, threshold: float) -> tuple[list[Likeness], Measure]:
    """The same judged by another threshold; 0 keeps the measure's own."""
    if threshold:
        measure = replace(measure, threshold=threshold)
    return [replace(each, same=each.face is not None and measure.same(each.value)) for each in results], measure


def by_likeness(results: Sequence[Likeness], measure: Measure) -> list[int]:
    """Numbers of the results, the most alike first; those without a face come last, in their own order."""
    return sorted(range(len(results)), key=lambda i: (results[i].face is None, measure.order(results[i].value)))
