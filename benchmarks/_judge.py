"""One finished portrait to numbers: is it the person, with their moles, as the prompt says, and where was it guided?

The measures are the demo's own (demo/measures, calibrated in docs/measures.md); nothing that is trained sees them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from _portraits import Case, Made, digest, of_file, of_source, sitter, wanted
from omniportrait.demo.measures.detail import KnownMoles, contrasts
from omniportrait.demo.measures.identity import FaceEmbedder, align
from omniportrait.demo.measures.separation import THRESHOLDS, thresholds
from omniportrait.demo.measures.text import HEADS, WEIGHTS, TextMeasure
from omniportrait.models.face.detector import DetectedFace, arrange, find_faces
from omniportrait.models.face.mask import face_oval
from omniportrait.models.face.mtcnn import BuiltInDetector

MEASURES = ("demo/measures/detail.py", "demo/measures/geometry.py", "demo/measures/identity.py",
            "demo/measures/text.py", "models/face")  # fmt: skip
LAST_PLACES = 2
"""Blocks at the embedder's end that crop similarity leaves out: what remains still has places (9x9 on a chip)."""
AROUND = 1.25
"""The face ovals, so much larger, are no background: a latent's cell is 8 pixels wide, and its decoder blurs."""
COLUMNS = ("face", "distance", "same", "similarity", "kept", "contrast", "text", *HEADS, "change", "iou", "seconds")


@dataclass(frozen=True, eq=False)
class Face:
    """The largest face of a picture. landmarks: [5, 2]. vector: [128]. places: [C, h, w], the inner features."""

    found: DetectedFace
    landmarks: torch.Tensor
    vector: torch.Tensor
    places: torch.Tensor


class Judge:
    """text, cuts: files of `make measures`. self.cuts: for pictures out of the autoencoder; drawn_cuts: for renders,
    on which a mole is darker."""

    def __init__(self, text: Path = WEIGHTS, cuts: Path = THRESHOLDS) -> None:
        self.text = TextMeasure.load(text)
        self.cuts, self.drawn_cuts = thresholds(cuts, generated=True), thresholds(cuts)
        self.embedder = FaceEmbedder()
        self.key = digest(of_file(text), self.cuts, self.drawn_cuts, of_source(*MEASURES, Path(__file__)))
        self.known = lru_cache(maxsize=4)(self._known)

    def _known(self, person: int) -> tuple[Face, KnownMoles] | None:
        """The reference portrait's face and moles. None where no face is found in it."""
        reference = sitter(person)
        face = self.look(torch.from_numpy(reference.picture.copy()).movedim(-1, 0).float() / 255)
        if face is None:
            return None
        moles = KnownMoles.of(reference.record)
        return face, KnownMoles(face.landmarks, moles.places, moles.radii)

    @torch.no_grad()
    def look(self, picture: torch.Tensor) -> Face | None:
        """picture: [3, S, S] in 0..1."""
        faces, turns = find_faces(BuiltInDetector(), picture)
        if not faces or turns:
            return None
        found = arrange(faces, "largest", *picture.shape[-2:])[0]
        landmarks = torch.tensor(found.landmarks)
        chips = align(picture[None], landmarks[None])
        model = self.embedder
        stem = F.max_pool2d(model.stem((chips * 255 - model.mean) / 256).relu(), 3, 2)
        places = model.blocks[:-LAST_PLACES](stem)[0]
        return Face(found, landmarks, model(chips)[0], places)

    def __call__(
        self, case: Case, made: Made, unguided: Made | None, masked: bool, drawn: bool = False
    ) -> dict[str, float | None]:
        """A number for each of COLUMNS; None where there is none to give.

        distance: Euclidean, of the embeddings; same: it is below the calibrated cut. similarity: mean cosine of inner
        features, place by place. kept: share of the reference's moles that are seen; contrast: their mean darkness in
        deviations of the skin. text: share of the HEADS whose word is right. change: mean absolute difference to
        the unguided picture outside of both faces, in 1/255. iou: of M_gen and the face's oval, if `masked`. `drawn`:
        the picture is a render, which no autoencoder has touched. Without a face, `same`, `kept`, `iou`, the expression
        and the subject count as missed.
        """
        known, moles = self.known(case.person)
        face, cuts = self.look(made.picture), self.drawn_cuts if drawn else self.cuts
        row: dict[str, float | None] = dict.fromkeys(COLUMNS)
        row |= {"face": float(face is not None), "same": 0.0, "seconds": made.seconds or None}
        if len(moles.radii):
            row["kept"] = 0.0
        if masked:
            row["iou"] = 0.0
        if face is not None:
            distance = float((face.vector - known.vector).norm())
            row |= {"distance": distance, "same": float(distance < cuts["identity"])}
            row["similarity"] = float(F.cosine_similarity(face.places, known.places, dim=0).mean())
            if len(moles.radii):
                dark = contrasts(made.picture, moles.carried(face.landmarks))
                row |= {"kept": float((dark > cuts["detail"]).float().mean()), "contrast": float(dark.mean())}
            if masked:
                row["iou"] = iou(made.mask, face_oval(face.found, made.mask.shape[-1]) > 0.5)
        row |= self._text(case, made.picture, face)
        if unguided is not None:
            row["change"] = self._change(made.picture, face, unguided.picture)
        return row

    def _text(self, case: Case, picture: torch.Tensor, face: Face | None) -> Mapping[str, float]:
        prompt, subject = wanted(case)
        words = {head: subject if head == "subject" else getattr(prompt, head) for head in HEADS}
        answers = self.text.agreement(picture[None], [words], [None if face is None else face.landmarks])
        right = {head: float(answer[0]) for head, answer in answers.items()}
        return {"text": sum(right.values()) / len(right), **right}

    def _change(self, picture: torch.Tensor, face: Face | None, unguided: torch.Tensor) -> float | None:
        faces = [each.found for each in (face, self.look(unguided)) if each is not None]
        if not faces:
            return None
        side = picture.shape[-1]
        outside = torch.stack([face_oval(each, side, AROUND) for each in faces]).amax(0) == 0
        return float((picture - unguided).abs().mean(0)[outside].mean()) * 255


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    """Intersection over union of two boolean masks; 0 where both are empty."""
    return float((a & b).sum() / (a | b).sum().clamp_min(1))
