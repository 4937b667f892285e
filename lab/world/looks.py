"""What a person looks like, in words. The base model learns them from its captions, as a large model does from the
world's: were there none, its text could not say who is shown, and no encoder could say it in the text's place."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from .identity import HAIR_COLOURS, IRIS_COLOURS, Detail, Identity
from .mesh import mesh

Look = tuple[str, str]
"""One thing about a person before the noun, "blue eyed", and after "with", "blue eyes" ("": there is none)."""

HAIR_WORDS = ("black", "dark brown", "brown", "blond", "light blond", "red", "grey", "white")
EYE_WORDS = ("brown", "hazel", "blue", "green", "grey")
SKIN_WORDS = ((0.34, "dark"), (0.48, "brown"), (0.57, "tan"), (0.64, "fair"), (1.0, "pale"))
"""Up to which brightness of the skin each word goes."""
AGE_WORDS = ((0.27, "young"), (0.53, "middle aged"), (1.0, "old"))
HAIR_LOOKS = {
    "bald": ("bald", "no hair"),
    "buzz cut": ("{} buzz cut", "a {} buzz cut"),
    "short": ("short {} haired", "short {} hair"),
    "quiff": ("{} quiffed", "a {} quiff"),
    "curly": ("curly {} haired", "curly {} hair"),
    "afro": ("{} afro haired", "a {} afro"),
    "bob": ("{} bobbed", "a {} bob"),
    "long": ("long {} haired", "long {} hair"),
    "fringe": ("{} fringed", "a {} fringe"),
}
SHAPE_LOOKS = {
    "nose length": (0.365, "short nosed", "a short nose", 0.454, "long nosed", "a long nose"),
    "nose height": (0.395, "flat nosed", "a flat nose", 0.449, "big nosed", "a big nose"),
    "nose width": (0.404, "narrow nosed", "a narrow nose", 0.448, "wide nosed", "a wide nose"),
    "mouth width": (0.446, "small mouthed", "a small mouth", 0.485, "wide mouthed", "a wide mouth"),
    "lips": (0.192, "thin lipped", "thin lips", 0.231, "full lipped", "full lips"),
    "jaw": (1.162, "narrow jawed", "a narrow jaw", 1.242, "wide jawed", "a wide jaw"),
    "cheeks": (1.626, "narrow faced", "a narrow face", 1.740, "wide faced", "a wide face"),
    "chin": (1.036, "short faced", "a short face", 1.165, "long faced", "a long face"),
    "eyes": (0.273, "small eyed", "small eyes", 0.285, "large eyed", "large eyes"),
    "brows": (0.043, "thin browed", "thin brows", 0.062, "thick browed", "thick brows"),
}
"""What a measure is called below and above which length (decimetres): the outer three tenths of people on each side."""


MOST = 7, 4
"""Looks in a caption before and after the noun, at most: with more it might not fit into CLIP's 77 tokens."""


def looks(person: Identity) -> list[Look]:
    """All that there are words for about a person."""
    hair = HAIR_WORDS[nearest(person.hair_colour, HAIR_COLOURS)]
    eyes = EYE_WORDS[nearest(unit(person.iris), unit(IRIS_COLOURS))]
    skin = word_of(SKIN_WORDS, float(person.skin.mean()))
    before, after = HAIR_LOOKS[person.hair]
    found = [
        (word_of(AGE_WORDS, person.age), ""),
        (skin, f"{skin} skin"),
        (before.format(hair), after.format(hair)),
        (f"{eyes} eyed", f"{eyes} eyes"),
    ]
    if person.stubble:
        found.append(("stubbled", "stubble"))
    return [*found, *shape_looks(person), *(mark_look(detail) for detail in person.details)]


def shape_looks(person: Identity) -> Iterator[Look]:
    """What stands out in the shape of a face."""
    found = measures(person.vertices) | {"brows": person.brow.thickness}
    for name, (low, *small, high, before, after) in SHAPE_LOOKS.items():
        if found[name] < low:
            yield tuple(small)
        elif found[name] > high:
            yield before, after


def mark_look(detail: Detail) -> Look:
    """A mole or a scar has a place, by the person's own left and right; freckles have none."""
    if detail.kind == "freckles":
        return "freckled", "freckles"
    where = region(*detail.centre[:2])
    return f"{where} {detail.kind}", f"a {detail.kind} on the {where}"


def region(x: float, y: float) -> str:
    """The part of the face at a place of the template, decimetres from the point between the eyes."""
    side = "left" if x > 0 else "right"
    if y > 0.2:
        return "forehead" if abs(x) < 0.15 else f"{side} forehead"
    if abs(x) < 0.14 and y > -0.52:
        return "nose"
    return "chin" if abs(x) < 0.25 and y < -0.8 else f"{side} cheek"


@functools.cache
def places() -> dict[str, np.ndarray]:
    """Vertices of the template by which a face is measured."""
    x, y, z = mesh().vertices.T
    body = np.zeros(len(x), bool)
    body[mesh().of("body")] = True
    front = body & (z > -0.6)
    return {
        "tip": np.flatnonzero(front & (abs(x) < 0.05) & (abs(y + 0.375) < 0.03) & (z > 0.38)),
        "wings": np.flatnonzero(front & (abs(x) < 0.22) & (abs(y + 0.42) < 0.07) & (z > 0.1)),
        "lips": np.flatnonzero(mesh().lips > 0.5),
        "jaw": np.flatnonzero(body & (abs(y + 0.75) < 0.08) & (z > -0.9)),
        "cheeks": np.flatnonzero(body & (abs(y + 0.25) < 0.08) & (z > -0.9)),
        "chin": np.flatnonzero(front & (abs(x) < 0.08) & (y > -1.2) & (y < -0.95)),
        "eye": np.asarray(mesh().of("helper-l-eye")),
    }


def measures(vertices: np.ndarray) -> dict[str, float]:
    """Lengths of a resting face [V, 3], decimetres."""
    at = {name: vertices[index] for name, index in places().items()}

    def span(name: str, axis: int) -> float:
        return float(np.ptp(at[name][:, axis]))

    return {
        "nose length": -float(at["tip"][:, 1].mean()),
        "nose height": float(at["tip"][:, 2].mean()),
        "nose width": span("wings", 0),
        "mouth width": span("lips", 0),
        "lips": span("lips", 1),
        "jaw": span("jaw", 0),
        "cheeks": span("cheeks", 0),
        "chin": -float(at["chin"][:, 1].mean()),
        "eyes": span("eye", 1),
    }


def told(subject: str, found: Sequence[Sequence[str]], rng: np.random.Generator) -> tuple[str, str]:
    """Some of a person's looks around the noun: what stands in its place, and what follows ("" or " with …"). How many,
    which, on which side and in which order is chance; the noun comes last, so that its token knows what went before."""
    share = rng.uniform()
    before, after = [], []
    for index in rng.permutation(len(found)):
        early, late = found[index]
        if rng.uniform() > share:
            continue
        if not late or rng.uniform() < 0.7:
            before.append(early)
        else:
            after.append(late)
    before, after = before[: MOST[0]], after[: MOST[1]]
    listed = " and ".join(filter(None, (", ".join(after[:-1]), *after[-1:])))
    return " ".join([*before, subject]), f" with {listed}" if listed else ""


def word_of(words: Sequence[tuple[float, str]], value: float) -> str:
    return next(word for highest, word in words if value <= highest)


def nearest(colour: np.ndarray, colours: np.ndarray) -> int:
    return int(np.linalg.norm(colours - colour, axis=1).argmin())


def unit(colours: np.ndarray) -> np.ndarray:
    """Colours without their brightness, which varies from person to person."""
    return colours / np.linalg.norm(colours, axis=-1, keepdims=True)
