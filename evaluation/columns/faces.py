"""Likeness: the built-in embedder's distance, always, and SIM by FaceNet or ArcFace files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import fmean

import torch

from ...models.faces.recogniser import Recogniser, load_recogniser
from ..cells import Cell
from ..portrait import Album, Portrait
from ..protocol import Person
from .column import Shown, only_file


def embeddings(recogniser: Recogniser) -> Callable[[Path, Album], torch.Tensor | None]:
    """The embedding of a photograph's face, None where there is none; each file is looked at once."""

    @lru_cache(maxsize=1024)
    def of(file: Path, album: Album) -> torch.Tensor | None:
        portrait = album.photo(file)
        return None if portrait.face is None else recogniser.embed(portrait.pixels, portrait.face)

    return of


class BuiltInFaces:
    """By dlib's embedder. margin: how much nearer the portrait is to the person's photograph than to those of others
    who have the same subject. copied: how much nearer it is to the photograph that was given than to the person's
    others, the mark of copy and paste."""

    key = "faces-built-in-1"
    shown = (
        Shown("face", "face found, %", 1, 100, 1),
        Shown("distance", "distance", -1, 1, 3),
        Shown("same", "same person, %", 1, 100, 1),
        Shown("margin", "margin", 1, 1, 3, of_face=True),
        Shown("copied", "copied", -1, 1, 3),
    )

    def __init__(self, people: Sequence[Person]) -> None:
        self.people, self.recogniser = people, load_recogniser(None)
        self._embedding = embeddings(self.recogniser)

    def __call__(self, cell: Cell, portrait: Portrait, album: Album) -> dict[str, float | None]:
        row: dict[str, float | None] = dict.fromkeys(each.key for each in self.shown)
        row["face"] = float(portrait.face is not None)
        own = self._embedding(cell.person.photo, album)
        if own is None:
            return row
        if portrait.face is None:
            return row | {"same": 0.0}
        measure = self.recogniser.measure
        vector = self.recogniser.embed(portrait.pixels, portrait.face)
        distance = measure.value(vector, own)
        row |= {"distance": distance, "same": float(measure.same(distance))}
        others = [p.photo for p in self.people if p.subject == cell.person.subject and p.id != cell.person.id]
        known = [each for each in (self._embedding(file, album) for file in others) if each is not None]
        if known:
            row["margin"] = fmean(measure.value(vector, each) for each in known) - distance
        more = [each for each in (self._embedding(file, album) for file in cell.person.others) if each is not None]
        if more:
            row["copied"] = fmean(measure.value(vector, each) for each in more) - distance
        return row


class Sim:
    """Cosine of the embeddings of a recogniser's file."""

    def __init__(self, file: Path, key: str, title: str) -> None:
        self.recogniser = load_recogniser(file)
        self.key = f"{key}-1-{self.recogniser.key}"
        self.shown = (Shown(key, title, 1, 100, 2, of_face=True),)
        self._embedding = embeddings(self.recogniser)

    def __call__(self, cell: Cell, portrait: Portrait, album: Album) -> dict[str, float | None]:
        own = self._embedding(cell.person.photo, album)
        if portrait.face is None or own is None:
            return {self.shown[0].key: None}
        vector = self.recogniser.embed(portrait.pixels, portrait.face)
        return {self.shown[0].key: float(torch.cosine_similarity(vector, own, dim=0))}


def facenet(weights: Path) -> Sim:
    what = "FaceNet's weights of facenet-pytorch (20180402-114759-vggface2, MIT) as .safetensors"
    return Sim(only_file(weights, "facenet", (".safetensors",), what), "sim", "SIM")


def arcface(weights: Path) -> Sim:
    what = "AuraFace's glintr100.onnx (fal/AuraFace-v1, Apache-2.0), or another ONNX file that takes 112 pixels,"
    return Sim(only_file(weights, "arcface", (".onnx",), what), "arcface", "SIM (ONNX)")
