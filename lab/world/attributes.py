"""Things that a person may wear: what SPF-Portrait teaches. The caption never names them; the record says which.

A hat is large and beside the face, glasses are small and on it, face paint is a texture on the skin: the hardest to
add without changing who it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .hair import Curtain, lattice, scalp, smooth
from .identity import Identity
from .mesh import GROUPS, mesh

HAT_GROUP = len(GROUPS) + 1
"""Of the hat's triangles; the group before it is hanging hair's."""
ROWS, COLUMNS = 24, 96
RIM = 0.72
"""Share of the way down from the crown at which a hat's rim begins."""
VOLUMINOUS = ("quiff", "curly", "afro")
"""Hair that would poke through a hat, which cuts it short."""
EYES = 0.29
"""Half the distance of the eyes on the resting template, decimetres."""

Painted = tuple[np.ndarray, np.ndarray]
"""Where something is worn, boolean [N], and its colour there, [N, 3] (or [3])."""


@dataclass(frozen=True)
class Attribute:
    """phrase: the target's words. paint: of places on the template [N, 3], the triangles' groups [N] and which of them
    are the bare body [N]."""

    phrase: str
    paint: Callable[[np.ndarray, np.ndarray, np.ndarray], Painted]


def knitted(place: np.ndarray, group: np.ndarray, body: np.ndarray) -> Painted:
    """A ribbed hat with a pale rim; on a hat, place is the angle around the head and the share of the way down."""
    angle, share, _ = place.T
    knit = 1 + 0.16 * np.sin(46 * angle) + 0.06 * np.sin(90 * share)
    wool = np.where((share > RIM)[:, None], np.float32((0.85, 0.82, 0.75)), np.float32((0.85, 0.52, 0.05)))
    return group == HAT_GROUP, (wool * knit[:, None]).astype(np.float32)


def framed(place: np.ndarray, group: np.ndarray, body: np.ndarray) -> Painted:
    """Round black glasses: a ring around each eye, a bridge, and the temples."""
    x, y, z = place.T
    away = np.hypot(np.abs(x) - EYES, y - 0.01)
    ring = (away > 0.20) & (away < 0.255)
    bridge = (np.abs(x) < EYES - 0.20) & (np.abs(y - 0.05) < 0.025)
    temple = (np.abs(x) > EYES + 0.22) & (np.abs(y - 0.05) < 0.025) & (z > -0.9)
    return body & (z > -0.9) & (ring & (z > -0.5) | bridge & (z > -0.5) | temple), np.float32((0.015, 0.015, 0.02))


def striped(place: np.ndarray, group: np.ndarray, body: np.ndarray) -> Painted:
    """Two stripes on each cheek, blue over white, slanting to the ears."""
    x, y, z = place.T
    side = np.abs(x)
    cheek = body & (z > -0.6) & (side > 0.26) & (side < 0.66)
    height = y + 0.34 - 0.25 * (side - 0.45)
    upper, lower = np.abs(height) < 0.055, np.abs(height + 0.15) < 0.055
    colour = np.where(upper[:, None], np.float32((0.05, 0.16, 0.75)), np.float32((0.92, 0.92, 0.90)))
    return cheek & (upper | lower), colour.astype(np.float32)


ATTRIBUTES = {
    "hat": Attribute("wearing a hat", knitted),
    "glasses": Attribute("with round glasses", framed),
    "face paint": Attribute("face painted blue", striped),
}


def phrase_of(worn: Sequence[str]) -> str:
    """The target's words for what is worn. ValueError names what there is."""
    for name in worn:
        if name not in ATTRIBUTES:
            raise ValueError(f"Nobody can wear {name!r}: use one of {', '.join(ATTRIBUTES)}.")
    return ", ".join(ATTRIBUTES[name].phrase for name in worn)


def dressed_for(person: Identity, worn: Sequence[str]) -> Identity:
    """The person with hair that fits under what is worn."""
    return replace(person, hair="short") if "hat" in worn and person.hair in VOLUMINOUS else person


def hat(person: Identity, head: np.ndarray) -> Curtain:
    """The hat over a posed head [V, 3]: an ellipsoid over the grown skull, cut off at the forehead, lower behind."""
    template = mesh().vertices
    skull = head[(scalp(round(person.hairline, 2)) > 0.5) & (template[:, 1] > 0.35)]
    low, high = skull.min(0), skull.max(0)
    centre, width, depth = (low[2] + high[2]) / 2, (high[0] - low[0]) / 2 + 0.17, (high[2] - low[2]) / 2 + 0.24
    top = high[1] + 0.16
    angle = np.linspace(-np.pi, np.pi, COLUMNS).astype(np.float32)  # 0 is the front
    end = 0.55 + 0.2 * person.hairline - 0.35 * smooth((np.abs(angle) - 0.7) / 1.2)
    share = np.linspace(0, 1, ROWS, dtype=np.float32)[:, None]
    down = top - 0.002 - share**1.3 * (top - end[None])
    widest = 0.45
    round_ = np.sqrt(np.clip(1 - (np.clip(down - widest, 0, None) / (top - widest)) ** 2, 0, 1))
    thick = 1 + 0.045 * (share > RIM)
    x, z = width * thick * round_ * np.sin(angle), centre + depth * thick * round_ * np.cos(angle)
    points = np.stack(np.broadcast_arrays(x, down, z), -1).reshape(-1, 3).astype(np.float32)
    along = np.stack(np.broadcast_arrays(angle[None], share, 0 * share), -1).reshape(-1, 3).astype(np.float32)
    return Curtain(points, lattice(ROWS, COLUMNS), along)
