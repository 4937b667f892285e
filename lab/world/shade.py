"""Colour and light of what is seen: skin and its fine detail, lips, brows, eyes, hair, clothes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .attributes import ATTRIBUTES
from .garments import wear
from .hair import smooth
from .identity import Identity
from .mesh import GROUPS, mesh
from .raster import paint_spots
from .view import LIGHTS, View

LABELS = ("background", "skin", "hair", "eyes", "clothes", "lips", "brows", "neck", "ears", "worn")
FACE_LABELS = tuple(LABELS.index(name) for name in ("skin", "eyes", "lips", "brows"))
CURTAIN_GROUP = len(GROUPS)
GAMMA = 1.6
"""From the light that the surfaces send to display values; paler than the true 2.2, which flattens the faces."""


@dataclass(frozen=True)
class Surface:
    """What is seen at N pixels. `place` is on the resting template; on hanging hair it is where along the strand."""

    normal: np.ndarray
    place: np.ndarray
    lips: np.ndarray
    scalp: np.ndarray
    group: np.ndarray


def colours(person: Identity, view: View, seen: Surface) -> tuple[np.ndarray, np.ndarray]:
    """Display colours [N, 3] float32 0..1 and labels [N] uint8 of what is seen."""
    body = seen.group == GROUPS.index("body")
    albedo = np.tile(person.skin, (len(body), 1))
    labels = np.full(len(body), LABELS.index("skin"), np.uint8)
    on_skin(person, seen.place, body, albedo, labels)
    lip = np.where(body, seen.lips, 0)[:, None]
    albedo = albedo * (1 - lip) + person.skin * person.lips * lip
    labels[lip[:, 0] > 0.5] = LABELS.index("lips")
    paint_brows(person, seen.place, body, albedo, labels)
    paint_eyes(person, seen, albedo, labels)
    paint_hair(person, seen, body, albedo, labels)
    dressed(view, seen, body, albedo, labels)
    for name in view.worn:
        covered, colour = ATTRIBUTES[name].paint(seen.place, seen.group, body)
        albedo[covered] = np.broadcast_to(colour, albedo.shape)[covered]
        labels[covered] = LABELS.index("worn")
    lit = albedo * light(view, seen.normal, gloss(labels, seen.group))
    return np.clip(lit, 0, 1) ** np.float32(1 / GAMMA), labels


def on_skin(person: Identity, place: np.ndarray, body: np.ndarray, albedo: np.ndarray, labels: np.ndarray) -> None:
    """Blush, stubble, hollows, then the marks, all in place."""
    x, y, z = place.T
    front = body & (z > -0.7)
    blush = np.exp(-((np.abs(x) - 0.45) ** 2 + (y + 0.4) ** 2) / 0.08) * front
    albedo *= 1 + blush[:, None] * np.array((0.06, -0.05, -0.05), np.float32)
    jaw = smooth((-0.42 - y) / 0.25) * smooth((y + 1.35) / 0.15) * smooth((z + 0.75) / 0.3) * body
    albedo *= 1 - (person.stubble * jaw)[:, None] * np.array((1.0, 0.95, 0.85), np.float32)
    under_chin = smooth((-1.12 - y) / 0.1) * smooth((y + 2.1) / 0.7) * body
    sockets = np.exp(-(((np.abs(x) - 0.27) / 0.22) ** 2 + ((y - 0.07) / 0.13) ** 2)) * front
    albedo *= (1 - 0.38 * under_chin - 0.10 * sockets)[:, None]
    labels[body & (y < -1.12 - 0.25 * np.clip(-z - 0.3, 0, 1))] = LABELS.index("neck")
    labels[body & (np.abs(x) > 0.69) & (y > -0.5) & (y < 0.3) & (z < -0.35)] = LABELS.index("ears")
    skin = np.flatnonzero(front)
    painted, places = albedo[skin], place[skin]
    for detail in person.details:
        paint_spots(painted, places, *detail.spots)
    albedo[skin] = painted


def paint_brows(person: Identity, place: np.ndarray, body: np.ndarray, albedo: np.ndarray, labels: np.ndarray) -> None:
    brow, (x, y, z) = person.brow, place.T
    out = (np.abs(x) - 0.29) / brow.length
    line = brow.height + brow.arch * (1 - out**2) + np.tan(brow.angle) * (np.abs(x) - 0.29)
    thick = brow.thickness * (1 - 0.55 * np.clip(out, 0, 1))
    hairs = 0.85 + 0.15 * np.sin(90 * x + 50 * y)
    share = np.clip(1.4 - np.abs(y - line) / thick, 0, 1) * smooth((1 - np.abs(out)) / 0.15)
    share = (share * hairs * brow.strength * (body & (z > -0.3)))[:, None]
    albedo[:] = albedo * (1 - share) + 0.8 * person.hair_colour * share
    labels[share[:, 0] > 0.35] = LABELS.index("brows")


def paint_eyes(person: Identity, seen: Surface, albedo: np.ndarray, labels: np.ndarray) -> None:
    """White, iris with a darker rim, pupil; lashes, teeth and tongue go with them as parts that are not skin."""
    for side in "lr":
        eye = np.flatnonzero(seen.group == GROUPS.index(f"helper-{side}-eye"))
        vertices = mesh().vertices[mesh().of(f"helper-{side}-eye")]
        from_centre = seen.place[eye] - vertices.mean(0)
        away = np.hypot(from_centre[:, 0], from_centre[:, 1]) / (np.ptp(vertices[:, 0]) / 2)
        iris = np.where(away > 0.42, 0.55, 1.0)[:, None] * person.iris
        colour = np.where((away < 0.50)[:, None], iris, np.float32((1.0, 0.98, 0.96)))
        albedo[eye] = np.where((away < 0.21)[:, None], np.float32(0.015), colour)
        labels[eye] = LABELS.index("eyes")
    for index, name in enumerate(GROUPS):
        part = seen.group == index
        if "lashes" in name:
            albedo[part], labels[part] = 0.07, LABELS.index("eyes")
        elif "teeth" in name:
            albedo[part], labels[part] = (0.90, 0.87, 0.80), LABELS.index("lips")
        elif "tongue" in name:
            albedo[part], labels[part] = (0.62, 0.26, 0.26), LABELS.index("lips")


def paint_hair(person: Identity, seen: Surface, body: np.ndarray, albedo: np.ndarray, labels: np.ndarray) -> None:
    x, y, z = seen.place.T
    if person.hair != "bald":
        edge = 0.45 + 0.15 * np.sin(47 * x + 11 * y) * np.sin(31 * z + person.number)
        grown = body & (seen.scalp > edge)
        strands = strand_noise(person, np.arctan2(x, z + 0.7), y, 1.0 if person.hair in ("curly", "afro") else 0.25)
        bare = 0.45 if person.hair == "buzz cut" else 0.0
        hair = person.hair_colour * strands[:, None]
        albedo[grown] = (bare * albedo + (1 - bare) * hair)[grown]
        labels[grown] = LABELS.index("hair")
    hanging = seen.group == CURTAIN_GROUP
    albedo[hanging] = (person.hair_colour * strand_noise(person, x, y, 0.12)[:, None])[hanging]
    labels[hanging] = LABELS.index("hair")


def strand_noise(person: Identity, around: np.ndarray, down: np.ndarray, curl: float) -> np.ndarray:
    """[N] brightness of strands that run down at `around` (radians), crossing `curl` much."""
    phase = person.number * 0.7
    wave = np.sin(34 * around + 13 * curl * down + phase) + 0.7 * np.sin(71 * around + 3 + phase)
    return 1 + 0.11 * wave + 0.25 * curl * np.sin(23 * down + 5 * around) * np.sin(19 * around)


def dressed(view: View, seen: Surface, body: np.ndarray, albedo: np.ndarray, labels: np.ndarray) -> None:
    low = np.flatnonzero(body & (seen.place[:, 1] < -1.25))
    covered, cloth = wear(view.garment, view.colour, seen.place[low])
    albedo[low[covered]] = cloth[covered] ** GAMMA
    labels[low[covered]] = LABELS.index("clothes")


def gloss(labels: np.ndarray, group: np.ndarray) -> np.ndarray:
    """[N] how much of a highlight each part shows."""
    amounts = np.array((0, 0.10, 0.10, 0.35, 0.0, 0.20, 0.05, 0.06, 0.08, 0.0), np.float32)
    return np.where(group == CURTAIN_GROUP, np.float32(0.08), amounts[labels])


def light(view: View, normal: np.ndarray, shine: np.ndarray) -> np.ndarray:
    """[N, 3] factors: light from everywhere (more from above), a wrapped key light, a weak fill, a highlight."""
    direction, tone, ambient = (np.asarray(value, np.float32) for value in LIGHTS[view.light])
    direction = direction / np.linalg.norm(direction)
    key = np.clip((normal @ direction + 0.2) / 1.2, 0, 1)
    half = direction + np.float32((0, 0, 1))
    highlight = np.clip(normal @ (half / np.linalg.norm(half)), 0, 1) ** 24 * shine
    fill = np.clip(normal @ np.float32((0, -0.3, 0.95)), 0, 1)
    everywhere = ambient * (0.72 + 0.28 * normal[:, 1]) + 0.12 * fill
    return everywhere[:, None] + (1.05 - ambient) * (key[:, None] * tone) * 1.25 + 2 * highlight[:, None] * tone
