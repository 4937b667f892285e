"""Hair: the scalp pushed outwards, and for long styles a curtain around the head."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from .identity import Identity
from .mesh import mesh

THICKNESS = {
    "bald": 0.0, "buzz cut": 0.012, "short": 0.09, "quiff": 0.10, "curly": 0.17, "afro": 0.40, "bob": 0.07,
    "long": 0.06, "fringe": 0.06,
}  # fmt: skip
"""How far the scalp is pushed out, decimetres."""
CURTAINS = {"bob": (-1.15, 0.80), "long": (-2.5, 0.80), "fringe": (-2.2, 0.42)}
"""Where the hair ends at the sides, and on the forehead: heights above the eyes, decimetres."""
COLUMNS, ROWS = 96, 28


@dataclass(frozen=True)
class Curtain:
    """Extra triangles. `along` [N, 3]: angle around the head, share of the way down, 0: where strands are painted."""

    vertices: np.ndarray
    faces: np.ndarray
    along: np.ndarray


def smooth(x: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above 1, smooth between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


@functools.lru_cache(maxsize=64)
def scalp(hairline: float) -> np.ndarray:
    """[V] 0..1: where hair grows on the template, with a soft edge."""
    x, y, z = mesh().vertices.T
    forehead = 0.70 + hairline - 0.55 * np.clip(np.abs(x) - 0.42, 0, 1) + 0.05 * np.cos(5 * x)
    front = smooth((y - forehead) / 0.12)
    behind = np.where(y > 0.22, -0.42, -0.80)
    back = smooth((behind - z) / 0.14) * smooth((y + 0.95) / 0.2)
    ear = (np.abs(x) > 0.70) & (y < 0.24) & (y > -0.55)
    body = np.zeros(len(x), bool)
    body[mesh().of("body")] = True
    return (np.maximum(front, back) * ~ear * body).astype(np.float32)


def grow(person: Identity, vertices: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """`vertices` [V, 3] with the scalp pushed out by the person's hair."""
    growth = THICKNESS[person.hair] * np.ones(len(vertices), np.float32)
    x, y, z = mesh().vertices.T
    if person.hair == "quiff":
        growth += 0.24 * smooth((y - 0.75) / 0.3) * smooth((z + 0.9) / 0.7)
    if person.hair in ("curly", "afro"):
        growth *= 1 + 0.25 * np.sin(17 * x + person.number) * np.sin(19 * y) * np.sin(15 * z)
        growth *= 0.35 + 0.65 * smooth((y + 0.6) / 1.0)
    return vertices + (growth * scalp(round(person.hairline, 2)))[:, None] * normals


def curtain(person: Identity, vertices: np.ndarray) -> Curtain | None:
    """The long hair of `person`, whose resting head is `vertices` [V, 3]; None for a short style.

    Columns go round the head from one temple over the back to the other, rows from the crown down: first over an
    ellipsoid that holds the head, then straight down.
    """
    if person.hair not in CURTAINS:
        return None
    bottom, front = CURTAINS[person.hair]
    template = mesh().vertices
    skull = vertices[(scalp(round(person.hairline, 2)) > 0.5) & (template[:, 1] > 0.2)]
    ears = np.abs(vertices[mesh().of("body")][:, 0][template[mesh().of("body")][:, 1] > -0.4]).max()
    low, high = skull.min(0), skull.max(0)
    centre_z, width = (low[2] + high[2]) / 2, max((high[0] - low[0]) / 2 + 0.10, ears - 0.02)
    depth, top = (high[2] - low[2]) / 2 + 0.10, high[1] + 0.09
    rng = np.random.default_rng(person.number)
    angle = np.linspace(-np.pi, np.pi, COLUMNS).astype(np.float32)  # 0 is the front
    side = smooth((np.abs(angle) - 0.85) / 0.45)
    ragged = 0.05 * np.sin(angle * 23 + person.number) + 0.03 * np.sin(angle * 41)
    end = front + person.hairline * 0.5 + (bottom - front) * side + ragged
    share = np.linspace(0, 1, ROWS, dtype=np.float32)[:, None]
    equator = 0.25
    down = top - 0.005 - share**1.4 * (top - 0.005 - end[None])
    round_ = np.sqrt(np.clip(1 - (np.clip(down - equator, 0, None) / (top - equator)) ** 2, 0, 1))
    hang = np.clip(equator - down, 0, None)
    wave = 1 + 0.03 * np.sin(angle * 9 + rng.uniform(0, 6)) * (hang > 0) + 0.035 * hang
    x = width * wave * round_ * np.sin(angle)
    z = centre_z + depth * wave * round_ * np.cos(angle) - 0.10 * hang
    points = np.stack(np.broadcast_arrays(x, down, z), -1).reshape(-1, 3).astype(np.float32)
    along = np.stack(np.broadcast_arrays(angle[None], share, 0 * share), -1).reshape(-1, 3).astype(np.float32)
    return Curtain(points, lattice(ROWS, COLUMNS), along)


@functools.cache
def lattice(rows: int, columns: int) -> np.ndarray:
    """[F, 3] int32: two triangles a cell, both sides (hair is seen from inside too)."""
    index = np.arange(rows * columns, dtype=np.int32).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1].ravel(), index[:-1, 1:].ravel(), index[1:, :-1].ravel(), index[1:, 1:].ravel()
    front = np.concatenate([np.stack([a, c, b], 1), np.stack([b, c, d], 1)])
    return np.concatenate([front, front[:, ::-1]])
