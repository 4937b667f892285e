"""One portrait: the picture, its exact labels, and where everything is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .attributes import HAT_GROUP, dressed_for, hat, phrase_of
from .backgrounds import background
from .hair import Curtain, curtain, grow, scalp
from .identity import Detail, Identity
from .looks import looks, places
from .mesh import add_target, mesh
from .raster import NOTHING, interpolate, rasterise, vertex_normals
from .shade import CURTAIN_GROUP, FACE_LABELS, LABELS, Surface, colours
from .view import View, caption, face_units

FACE_HEIGHT = 1.9
"""Hairline to chin of the template, decimetres."""
CAMERA = 12.0
"""Distance of the camera, decimetres."""
PLACE = 4
"""Pixels of the picture for one of `Portrait.places`."""


@dataclass(frozen=True)
class Portrait:
    """`picture` [S, S, 3] uint8, `labels` [S, S] uint8 (`shade.LABELS`), `record` what the shards' JSON holds.
    `places` [S / 4, S / 4, 3] float16: which point of the resting template is seen at each cell's centre, NaN off the
    face. Equal points are the same place of a face, whoever's it is."""

    picture: np.ndarray
    labels: np.ndarray
    record: dict
    places: np.ndarray


def render(person: Identity, view: View, size: int = 256, oversample: int = 2) -> Portrait:
    """Draw `person` as `view` says, `size` pixels square. The same arguments give the same bytes."""
    person = dressed_for(person, view.worn)
    head = posed(person, view)
    surface, pixels, screen, seen = visible(person, view, head, size * oversample)
    shaded, labels = colours(person, view, surface)
    canvas = large_background(view, size * oversample)
    canvas[pixels] = shaded
    areas = np.zeros((size * oversample,) * 2, np.uint8)
    areas[pixels] = labels
    picture = canvas.reshape(size, oversample, size, oversample, 3).mean((1, 3))
    labels = areas[oversample // 2 :: oversample, oversample // 2 :: oversample].copy()
    record = described(person, view, screen / oversample, labels, surface, pixels, oversample)
    return Portrait(
        (picture * 255 + 0.5).astype(np.uint8), labels, record, face_places(surface, pixels, areas, oversample)
    )


def face_places(seen: Surface, pixels: tuple, labels: np.ndarray, oversample: int) -> np.ndarray:
    """`Portrait.places` of what is seen at those pixels of the oversampled picture, and of its labels."""
    places = np.full((*labels.shape, 3), np.nan, np.float16)
    places[pixels] = seen.place
    places[~np.isin(labels, FACE_LABELS)] = np.nan
    step = PLACE * oversample
    return places[step // 2 :: step, step // 2 :: step].copy()


def posed(person: Identity, view: View) -> np.ndarray:
    """[V, 3] the head with its expression, hair grown, not yet turned."""
    vertices = person.vertices.copy()
    for name, weight in face_units(view.expression).items():
        add_target(vertices, name, weight)
    return grow(person, vertices, vertex_normals(vertices, mesh().faces))


def turned(points: np.ndarray, view: View) -> np.ndarray:
    """`points` [N, 3] turned about the middle of the head, decimetres."""
    yaw, pitch, roll = np.deg2rad((view.yaw, view.pitch, view.roll))
    about_y = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    about_z = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    middle = np.array((0, -0.1, -0.7))
    return ((points - middle) @ (about_z @ about_x @ about_y).T + middle).astype(np.float32)


def projected(points: np.ndarray, view: View, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Screen places [N, 2] (pixels, y down) and depth [N] of turned points, seen by a camera at the eyes' height."""
    depth = CAMERA - points[:, 2]
    scale = view.face_height * size / FACE_HEIGHT * CAMERA / depth
    eyes = turned(np.zeros((1, 3)), view)[0]
    x = view.x * size + scale * (points[:, 0] - eyes[0])
    y = view.y * size - scale * (points[:, 1] - eyes[1])
    return np.stack([x, y], 1).astype(np.float32), depth.astype(np.float32)


@dataclass(frozen=True)
class Placed:
    """A head in its place: vertices [V, 3] turned, faces [F, 3], screen [V, 2] in pixels, depth [V]; what hangs or sits
    on it comes last in all of them."""

    vertices: np.ndarray
    faces: np.ndarray
    screen: np.ndarray
    depth: np.ndarray


def placed(view: View, head: np.ndarray, size: int, parts: Sequence[Curtain] = ()) -> Placed:
    """A posed head as a view shows it, with what hangs or sits on it."""
    vertices, faces = head, mesh().faces
    for part in parts:
        faces = np.concatenate([faces, part.faces + len(vertices)])
        vertices = np.concatenate([vertices, part.vertices])
    vertices = turned(vertices, view)
    return Placed(vertices, faces, *projected(vertices, view, size))


def visible(person: Identity, view: View, head: np.ndarray, size: int):
    """What is seen at each covered pixel, those pixels (rows, columns), the vertices' places on the screen, and the
    triangle of each pixel."""
    template, parts = mesh(), additions(person, view, head)
    groups, places = template.groups.astype(np.int16), template.vertices
    lips, grown = template.lips, scalp(round(person.hairline, 2))
    fronts, vertices = [template.faces], len(head)  # what has two sides counts once for the normals
    for part, group in parts:
        fronts.append((part.faces + vertices)[: len(part.faces) // 2])
        groups = np.concatenate([groups, np.full(len(part.faces), group, np.int16)])
        places, vertices = np.concatenate([places, part.along]), vertices + len(part.vertices)
        nothing = np.zeros(len(part.vertices), np.float32)
        lips, grown = np.concatenate([lips, nothing]), np.concatenate([grown, nothing])
    shown = placed(view, head, size, [part for part, _ in parts])
    normals = vertex_normals(shown.vertices, np.concatenate(fronts))
    seen, weights = rasterise(shown.screen, shown.depth, shown.faces, size)
    pixels = np.nonzero(seen != NOTHING)
    triangles = seen[pixels]
    values = np.concatenate([normals, places, lips[:, None], grown[:, None]], 1).astype(np.float32)
    at = interpolate(values, shown.faces, triangles, weights[pixels])
    normal = at[:, :3] / (np.linalg.norm(at[:, :3], axis=1, keepdims=True) + 1e-6)
    return Surface(normal, at[:, 3:6].copy(), at[:, 6], at[:, 7], groups[triangles]), pixels, shown.screen, seen


def additions(person: Identity, view: View, head: np.ndarray) -> list[tuple[Curtain, int]]:
    """What hangs or sits on a head, and the group of its triangles."""
    hanging = curtain(person, person.vertices)
    found = [] if hanging is None else [(hanging, CURTAIN_GROUP)]
    return [*found, (hat(person, head), HAT_GROUP)] if "hat" in view.worn else found


def large_background(view: View, size: int) -> np.ndarray:
    """[size, size, 3] float32: drawn at half the size, it is out of focus anyway."""
    half = background(view.background, np.random.default_rng(view.seed), size // 2)
    return np.repeat(np.repeat(half, 2, 0), 2, 1).astype(np.float32)


def described(
    person: Identity,
    view: View,
    screen: np.ndarray,
    labels: np.ndarray,
    seen: Surface,
    pixels: tuple,
    oversample: int,
) -> dict:
    """The record of a portrait; places in pixels of the finished picture."""
    rows, columns = np.nonzero(np.isin(labels, FACE_LABELS))
    box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
    return {
        "caption": caption(person.subject, view),
        "subject": person.subject,
        "identity": person.number,
        "looks": looks(person),
        "expression": view.expression,
        "garment": view.garment,
        "colour": view.colour,
        "background": view.background,
        "light": view.light,
        "yaw": round(view.yaw, 2),
        "pitch": round(view.pitch, 2),
        "face_height": round(view.face_height, 4),
        "landmarks": [[round(float(v), 2) for v in screen[points].mean(0)] for points in landmark_vertices()],
        "face_box": box,
        "details": [where(detail, seen, pixels, oversample, view, len(labels)) for detail in person.details],
    } | (wearing(view, labels) if view.worn else {})


def wearing(view: View, labels: np.ndarray) -> dict:
    """What the record says of what is worn: its words, and the box of its pixels, or None where none is seen."""
    rows, columns = np.nonzero(labels == LABELS.index("worn"))
    box = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1] if len(rows) else None
    return {"target": phrase_of(view.worn), "worn": list(view.worn), "target_box": box}


def where(detail: Detail, seen: Surface, pixels: tuple, oversample: int, view: View, size: int) -> dict:
    """Where a detail is in the picture: the mean of the pixels that show its surroundings on the bare face."""
    away = np.linalg.norm(seen.place - detail.centre, axis=1)
    near = (away < min(detail.radius, 0.08)) & (seen.group == 0) & (seen.scalp < 0.3)
    found = {"kind": detail.kind, "x": 0.0, "y": 0.0, "radius": 0.0, "visible": bool(near.sum() >= 12)}
    if found["visible"]:
        rows, columns = pixels[0][near], pixels[1][near]
        found["x"], found["y"] = (round(float((v.mean() + 0.5) / oversample), 2) for v in (columns, rows))
        found["radius"] = round(detail.radius * view.face_height * size / FACE_HEIGHT, 2)
    return found


def landmark_vertices() -> tuple[np.ndarray, ...]:
    """Vertices whose mean is each landmark: eyes, tip of the nose, corners of the mouth; picture's left first."""
    template = mesh()
    place = template.vertices
    middle = np.flatnonzero((np.abs(place[:, 0]) < 0.05) & (place[:, 1] > -0.6) & (place[:, 1] < -0.1))
    tip = middle[place[middle, 2].argmax()]
    lips = places()["lips"]
    right, left = lips[place[lips, 0].argmin()], lips[place[lips, 0].argmax()]
    eyes = [template.of(f"helper-{side}-eye") for side in "rl"]
    return (*eyes, np.array([tip]), np.array([right]), np.array([left]))
