"""Exact correspondence: everybody is the same mesh moved about, so a triangle is the same place of every face."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .hair import curtain
from .identity import Identity
from .portrait import Placed, Portrait, placed, posed
from .raster import NOTHING, interpolate, rasterise
from .shade import FACE_LABELS
from .view import View

BEHIND = 0.03
"""How far a point may lie behind what is seen at its pixel, decimetres: the surface's own slope inside the pixel."""


@dataclass(frozen=True)
class Flow:
    """places [S, S, 2] float32: where each pixel of the lit picture lies in the profile, in pixels (x, y; the first
    centre is 0.5), NaN off the head. visible [S, S]: whether it is seen there."""

    places: np.ndarray
    visible: np.ndarray


def exact_flow(person: Identity, lit: View, profile: View, size: int = 256) -> Flow:
    """Of one person in two views, the hanging hair too, which is the same in both; what they wear is left out."""
    hanging = curtain(person, person.vertices)
    parts = [] if hanging is None else [hanging]
    return _flow(*(placed(view, posed(person, view), size, parts) for view in (lit, profile)), size)


def exact_flow_between(
    lit: tuple[Identity, View], profile: tuple[Identity, View], pictures: tuple[Portrait, Portrait]
) -> Flow:
    """Of two people: the same place of the face. pictures: both as `render` gives them, for what of them is face."""
    size = len(pictures[0].labels)
    heads = [placed(view, posed(person, view), size) for person, view in (lit, profile)]
    flow = _flow(*heads, size)
    faces = [np.isin(picture.labels, FACE_LABELS) for picture in pictures]
    column, row = (np.nan_to_num(flow.places[..., axis], nan=-1).astype(int).clip(0, size - 1) for axis in (0, 1))
    return Flow(flow.places, flow.visible & faces[0] & faces[1][row, column])


def _flow(lit: Placed, profile: Placed, size: int) -> Flow:
    seen, shares = rasterise(lit.screen, lit.depth, lit.faces, size)
    pixels = np.nonzero(seen != NOTHING)
    there = np.concatenate([profile.screen, profile.depth[:, None]], 1)
    x, y, depth = interpolate(there, lit.faces, seen[pixels], shares[pixels]).T
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    farthest = _farthest(profile, size)[row.clip(0, size - 1), column.clip(0, size - 1)]
    places, visible = np.full((size, size, 2), np.nan, np.float32), np.zeros((size, size), bool)
    places[pixels], visible[pixels] = np.stack([x, y], 1), inside & (depth <= farthest + BEHIND)
    return Flow(places, visible)


def _farthest(head: Placed, size: int) -> np.ndarray:
    """[S, S] the depth of what is seen at each pixel, the largest of the nine around it."""
    seen, shares = rasterise(head.screen, head.depth, head.faces, size)
    pixels = np.nonzero(seen != NOTHING)
    depth = np.full((size, size), -np.inf, np.float32)
    depth[pixels] = interpolate(head.depth[:, None], head.faces, seen[pixels], shares[pixels])[:, 0]
    around = np.pad(depth, 1, constant_values=-np.inf)
    return np.max([around[i : i + size, j : j + size] for i in range(3) for j in range(3)], axis=0)
