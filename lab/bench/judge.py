"""One finished portrait to numbers: is it the person, with their moles, as the prompt says, and where was it guided?

The measures are the demo's own (lab/measures, calibrated in docs/results/measures.md); nothing that is trained sees
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean as mean

import torch
import torch.nn.functional as F

from ...models.faces.detector import arrange, find_upright
from ...models.faces.embedder import CHIP, FaceEmbedder, align, template
from ...models.faces.embedder import WEIGHTS as EMBEDDER
from ...models.faces.face import DetectedFace
from ...models.faces.mask import face_oval
from ...models.faces.mtcnn import WEIGHTS as DETECTOR
from ...models.faces.mtcnn import BuiltInDetector
from ..measures.detail import KnownMoles, contrasts
from ..measures.held_out import away_from
from ..measures.separation import THRESHOLDS, thresholds
from ..measures.text import HEADS, SCENE, WEIGHTS, TextMeasure
from ..world.portrait import Portrait
from .portraits import Case, Made, sitter, wanted
from .sources import digest, of_file, of_source

MEASURES = ("lab/measures/detail.py", "lab/measures/held_out.py", "lab/measures/text.py",
            "models/faces")  # fmt: skip
LAST_PLACES = 2
"""Blocks at the embedder's end that crop similarity leaves out: what remains still has places (9x9 on a chip)."""
AROUND = 1.25
"""The face ovals, so much larger, are no background: a latent's cell is 8 pixels wide, and its decoder blurs."""
CHIP_OVAL = 1.25
"""Radius of the face on an aligned chip, over the distance of its middle from the landmark that is farthest off."""
RIVALS, VIEWS = 8, (1, 2, 3)
"""Other people with the same noun, and views of each person but the reference, from which the margin is measured."""
PEOPLE = 50
"""Rivals are taken from so many held-out people."""
COLUMNS = ("face", "margin", "distance", "same", "similarity", "detail", "kept", "false", "contrast",
           "scene", "text", *HEADS, "change", "iou", "guided", "amount")  # fmt: skip


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
        files = [of_file(file) for file in (text, EMBEDDER, DETECTOR)]
        self.key = digest(files, self.cuts, self.drawn_cuts, of_source(*MEASURES, __file__))
        self.known = lru_cache(maxsize=None)(self._known)
        self.others_views = lru_cache(maxsize=None)(self._others_views)
        self.rivals = lru_cache(maxsize=None)(self._rivals)

    def _known(self, person: int) -> tuple[Face, KnownMoles, KnownMoles] | None:
        """The reference portrait's face, its moles, and all its marks. None where no face is found in it."""
        reference = sitter(person)
        face = self.look(picture_of(reference))
        if face is None:
            return None
        moles = KnownMoles.of(reference.record)
        marks = [d for d in reference.record["details"] if d["visible"]]
        places = torch.tensor([(d["x"], d["y"]) for d in marks], dtype=torch.float32).reshape(-1, 2)
        everything = KnownMoles(face.landmarks, places, torch.ones(len(marks)))
        return face, replace(moles, landmarks=face.landmarks), everything

    def _others_views(self, person: int) -> torch.Tensor | None:
        """[128], the mean embedding of other views of the person than the reference."""
        faces = [self.look(picture_of(sitter(person, view))) for view in VIEWS]
        vectors = [face.vector for face in faces if face is not None]
        return torch.stack(vectors).mean(0) if vectors else None

    def _rivals(self, person: int) -> list[int]:
        """The next RIVALS people who share the noun and have a face in every picture that is needed."""
        noun, found = sitter(person).record["subject"], []
        for other in (number % PEOPLE for number in range(person + 1, person + PEOPLE)):
            if len(found) == RIVALS:
                break
            same_noun = other != person and sitter(other).record["subject"] == noun
            if same_noun and self.known(other) is not None and self.others_views(other) is not None:
                found.append(other)
        return found

    @torch.no_grad()
    def look(self, picture: torch.Tensor) -> Face | None:
        """picture: [3, S, S] in 0..1."""
        faces = find_upright(BuiltInDetector(), picture)
        if not faces:
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

        margin: how much nearer the face is to other views of the person than to those of RIVALS with the same noun,
        which a picture that only looks like every reference portrait does not gain. distance: Euclidean, of the
        embeddings, to the reference itself; same: it is below the calibrated cut. similarity: mean cosine of inner
        features, place by place over the face. kept: share of the reference's moles that are seen; false: the same
        share of the rivals' moles at places where this person has no mark, which a blotchy skin raises too; detail:
        kept - false; contrast: the moles' mean darkness in deviations of the skin. scene: share of SCENE whose word is
        right, text: of all HEADS. change: mean absolute difference to the unguided picture outside of both faces, in
        1/255. iou: of M_gen and the face's oval, if `masked`. guided, amount: as in Made. `drawn`: the picture is a
        render, which no autoencoder has touched. Without a face, `margin`, `same`, `kept`, `false`, `iou`, the
        expression and the subject are 0.
        """
        known, moles, marks = self.known(case.person)
        face, cuts = self.look(made.picture), self.drawn_cuts if drawn else self.cuts
        row: dict[str, float | None] = dict.fromkeys(COLUMNS)
        row |= {"face": float(face is not None), "same": 0.0, "margin": 0.0}
        row |= {"guided": made.guided, "amount": made.amount}
        if len(moles.radii):
            row |= {"kept": 0.0, "false": 0.0, "detail": 0.0}
        if masked:
            row["iou"] = 0.0
        if face is not None:
            distance = float((face.vector - known.vector).norm())
            row |= {"distance": distance, "same": float(distance < cuts["identity"])}
            row["margin"] = self._margin(case.person, face)
            alike = F.cosine_similarity(face.places, known.places, dim=0)
            row["similarity"] = float(alike[on_face(*alike.shape)].mean())
            if len(moles.radii):
                dark = contrasts(made.picture, moles.carried(face.landmarks))
                kept = float((dark > cuts["detail"]).float().mean())
                row |= {"kept": kept, "contrast": float(dark.mean())}
                row["false"] = self._false(case.person, made.picture, face, marks, cuts["detail"])
                row["detail"] = None if row["false"] is None else kept - row["false"]
            if masked:
                row["iou"] = iou(made.mask, face_oval(face.found, made.mask.shape[-1]) > 0.5)
        row |= self._text(case, made.picture, face)
        if unguided is not None:
            row["change"] = self._change(made.picture, face, unguided.picture)
        return row

    def _margin(self, person: int, face: Face) -> float | None:
        own, rivals = self.others_views(person), [self.others_views(rival) for rival in self.rivals(person)]
        if own is None or not rivals:
            return None
        return float((face.vector - torch.stack(rivals)).norm(dim=1).mean() - (face.vector - own).norm())

    def _false(self, person: int, picture: torch.Tensor, face: Face, marks: KnownMoles, cut: float) -> float | None:
        """Share of the rivals' moles that are seen, where this person's reference has no mark nearby."""
        own = marks.carried(face.landmarks).places
        seen: list[torch.Tensor] = []
        for rival in self.rivals(person):
            placed = away_from(self.known(rival)[1].carried(face.landmarks), own)
            seen.append(contrasts(picture, placed) > cut)
        together = torch.cat(seen) if seen else torch.zeros(0)
        return float(together.float().mean()) if len(together) else None

    def _text(self, case: Case, picture: torch.Tensor, face: Face | None) -> Mapping[str, float]:
        prompt, subject = wanted(case)
        words = {head: subject if head == "subject" else getattr(prompt, head) for head in HEADS}
        answers = self.text.agreement(picture[None], [words], [None if face is None else face.landmarks])
        right = {head: float(answer[0]) for head, answer in answers.items()}
        return {"text": mean(right.values()), "scene": mean(right[head] for head in SCENE), **right}

    def _change(self, picture: torch.Tensor, face: Face | None, unguided: torch.Tensor) -> float | None:
        faces = [each.found for each in (face, self.look(unguided)) if each is not None]
        if not faces:
            return None
        side = picture.shape[-1]
        outside = torch.stack([face_oval(each, side, AROUND) for each in faces]).amax(0) == 0
        return float((picture - unguided).abs().mean(0)[outside].mean()) * 255


def picture_of(portrait: Portrait) -> torch.Tensor:
    """[3, H, W] in 0..1."""
    return torch.from_numpy(portrait.picture.copy()).movedim(-1, 0).float() / 255


def on_face(rows: int, columns: int) -> torch.Tensor:
    """Boolean [rows, columns]: which places of a chip's features lie on the face, not on what is behind it."""
    five = template() / CHIP
    middle = five.mean(0)
    reach = CHIP_OVAL * (five - middle).norm(dim=1).max()
    y, x = ((torch.arange(count) + 0.5) / count for count in (rows, columns))
    return ((x - middle[0]) ** 2 + (y[:, None] - middle[1]) ** 2).sqrt() < reach


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    """Intersection over union of two boolean masks; 0 where both are empty."""
    return float((a & b).sum() / (a | b).sum().clamp_min(1))
