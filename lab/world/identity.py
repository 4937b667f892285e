"""Who is in the picture: everything that stays the same from one portrait of a person to the next.

The fine detail (moles, scars, freckles, brows) is painted at places of the resting template, so that it sits at the
same spot of the face whatever its shape, expression or pose.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .mesh import add_target, mesh, shape_axes

HAIR_STYLES = ("bald", "buzz cut", "short", "quiff", "curly", "afro", "bob", "long", "fringe")
HAIR_COLOURS = np.array(
    [(0.05, 0.04, 0.04), (0.16, 0.09, 0.05), (0.30, 0.17, 0.08), (0.62, 0.42, 0.18), (0.78, 0.66, 0.42),
     (0.50, 0.17, 0.06), (0.50, 0.50, 0.52), (0.85, 0.84, 0.82)],
    np.float32,
)  # fmt: skip
IRIS_COLOURS = np.array(
    [(0.20, 0.10, 0.04), (0.32, 0.19, 0.08), (0.20, 0.36, 0.55), (0.24, 0.42, 0.24), (0.42, 0.47, 0.50)], np.float32
)
ANCESTRIES = ("caucasian", "asian", "african")
SKINS = np.array([(0.87, 0.66, 0.55), (0.80, 0.60, 0.43), (0.40, 0.25, 0.17)], np.float32)


@dataclass(frozen=True)
class Detail:
    """One mark on the skin. `centre` is its place on the resting template (decimetres), `spots` the disks it is
    painted with: centres [S, 3], radii [S], tints [S, 3] that multiply the skin's colour."""

    kind: str
    centre: np.ndarray
    radius: float
    spots: tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Brow:
    """Shape of the eyebrows, decimetres and radians."""

    height: float
    thickness: float
    length: float
    arch: float
    angle: float
    strength: float


@dataclass(frozen=True)
class Identity:
    """A person. `vertices` [V, 3] is the resting head, `age` 0 (young) to 1 (old)."""

    number: int
    subject: str
    age: float
    vertices: np.ndarray
    skin: np.ndarray
    lips: np.ndarray
    iris: np.ndarray
    hair: str
    hair_colour: np.ndarray
    hairline: float
    stubble: float
    brow: Brow
    details: tuple[Detail, ...]


def identity(number: int, seed: int = 0) -> Identity:
    """The person with this number: always the same one for the same `seed`."""
    rng = np.random.default_rng((seed, number))
    subject = ("woman", "man")[rng.integers(2)]
    mixture = rng.dirichlet((0.35, 0.35, 0.35)).astype(np.float32)
    age = rng.uniform(0, 0.8)
    skin = np.clip(mixture @ SKINS * rng.uniform(0.88, 1.1) + rng.normal(0, 0.015, 3), 0.08, 0.95).astype(np.float32)
    colour = hair_colour(rng, mixture, age)
    return Identity(
        number=number,
        subject=subject,
        age=age,
        vertices=head_shape(rng, subject, mixture, age),
        skin=skin,
        lips=np.clip(np.array((0.84, 0.52, 0.52)) + rng.normal(0, (0.06, 0.07, 0.06)), 0.25, 1).astype(np.float32),
        iris=IRIS_COLOURS[rng.choice(5, p=eye_shares(mixture))] * np.float32(rng.uniform(0.8, 1.2)),
        hair=hair_style(rng, subject),
        hair_colour=colour,
        hairline=rng.uniform(-0.08, 0.12),
        stubble=rng.uniform(0.1, 0.4) if subject == "man" and rng.uniform() < 0.4 else 0.0,
        brow=Brow(
            height=rng.uniform(0.20, 0.28),
            thickness=rng.uniform(0.03, 0.075),
            length=rng.uniform(0.17, 0.25),
            arch=rng.uniform(0.0, 0.07),
            angle=rng.normal(0, 0.12),
            strength=rng.uniform(0.6, 0.95),
        ),
        details=details(rng),
    )


def head_shape(rng: np.random.Generator, subject: str, mixture: np.ndarray, age: float) -> np.ndarray:
    """MakeHuman's own mixture of ancestry, sex and age, then every axis of the face a little."""
    vertices = mesh().vertices.copy()
    sex = {"woman": "female", "man": "male"}[subject]
    for when, share in (("young", 1 - age), ("old", age)):
        for ancestry, part in zip(ANCESTRIES, mixture, strict=True):
            add_target(vertices, f"mpfb2/targets/macrodetails/{ancestry}-{sex}-{when}.target.gz", share * part)
        name = f"mpfb2/targets/macrodetails/universal-{sex}-{when}-averagemuscle-averageweight.target.gz"
        add_target(vertices, name, share)
    for axis, ways in shape_axes().items():
        weight = abs(rng.normal(0, 0.22 if axis.startswith("head/") else 0.34))
        way = ways[rng.integers(len(ways))]
        if rng.uniform() < 0.3 or axis == "head/head-age":
            continue
        for name in way:
            add_target(vertices, name, min(weight, 0.9))
    return vertices - eye_centre(vertices)


def eye_centre(vertices: np.ndarray) -> np.ndarray:
    """[3] the point midway between the eyes."""
    sides = [vertices[mesh().of(f"helper-{side}-eye")].mean(0) for side in "lr"]
    return (sides[0] + sides[1]) / 2


def eye_shares(mixture: np.ndarray) -> np.ndarray:
    """How often each of IRIS_COLOURS is met: light eyes mostly in the first ancestry."""
    light = mixture[0] ** 2
    shares = np.array([1 - 0.6 * light, 0.5, 0.7 * light, 0.5 * light, 0.4 * light])
    return shares / shares.sum()


def hair_colour(rng: np.random.Generator, mixture: np.ndarray, age: float) -> np.ndarray:
    light = mixture[0] ** 2
    shares = np.array([1.2 - light, 0.8, 0.7, 0.6 * light, 0.5 * light, 0.4 * light, age, 0.6 * age])
    picked = HAIR_COLOURS[rng.choice(len(HAIR_COLOURS), p=shares / shares.sum())]
    return np.clip(picked * rng.uniform(0.8, 1.2), 0.02, 0.95).astype(np.float32)


def hair_style(rng: np.random.Generator, subject: str) -> str:
    shares = {"woman": (0.2, 0.5, 1, 0.7, 1, 1, 2, 2, 1.5), "man": (1, 1.5, 2, 2, 1, 1, 0.2, 0.3, 0.1)}[subject]
    return HAIR_STYLES[rng.choice(len(HAIR_STYLES), p=np.array(shares) / sum(shares))]


# The fine detail


def details(rng: np.random.Generator) -> tuple[Detail, ...]:
    """None to five moles, sometimes a scar, sometimes freckles; never on eyes, lips or brows."""
    marks = [mole(rng) for _ in range(rng.choice(6, p=(0.1, 0.25, 0.25, 0.2, 0.12, 0.08)))]
    if rng.uniform() < 0.2:
        marks.append(scar(rng))
    if rng.uniform() < 0.2:
        marks.append(freckles(rng))
    return tuple(marks)


def place(rng: np.random.Generator) -> np.ndarray:
    """[3] a point of the template's bare skin, seen from the front: forehead, cheeks, nose, chin."""
    body = mesh().vertices[mesh().of("body")]
    while True:
        x, y = rng.uniform(-0.58, 0.58), rng.uniform(-1.0, 0.6)
        near_eye = abs(abs(x) - 0.31) < 0.27 and -0.22 < y < 0.36
        near_mouth = abs(x) < 0.33 and -0.92 < y < -0.56
        if near_eye or near_mouth or (x / 0.62) ** 2 + ((y + 0.15) / 0.95) ** 2 > 1:
            continue
        away = (body[:, 0] - x) ** 2 + (body[:, 1] - y) ** 2
        close = np.flatnonzero(away < 0.06**2)
        if len(close):
            return np.array((x, y, body[close, 2].max()), np.float32)


def mole(rng: np.random.Generator) -> Detail:
    centre, radius = place(rng), rng.uniform(0.038, 0.072)
    tint = np.array([(0.30, 0.22, 0.20)], np.float32) * np.float32(rng.uniform(0.6, 1.4))
    return Detail("mole", centre, radius, (centre[None], np.array([radius], np.float32), tint))


def scar(rng: np.random.Generator) -> Detail:
    """A line, redder and lighter than the skin around it."""
    centre, length, turn = place(rng), rng.uniform(0.12, 0.24), rng.uniform(0, np.pi)
    along = np.linspace(-length, length, 15)[:, None] * np.array((np.cos(turn), np.sin(turn), 0))
    tints = np.tile(np.array((1.12, 0.72, 0.70), np.float32), (15, 1))
    spots = (centre + along).astype(np.float32)
    return Detail("scar", centre, length, (spots, np.full(15, 0.035, np.float32), tints))


def freckles(rng: np.random.Generator) -> Detail:
    """Small pale spots over nose and cheeks."""
    spots = []
    while len(spots) < 45:
        point = place(rng)
        if -0.62 < point[1] < 0.0:
            spots.append(point)
    tint = np.array((0.74, 0.60, 0.52), np.float32)
    radii = rng.uniform(0.016, 0.030, 45).astype(np.float32)
    middle = np.array((0, -0.3, 0.35), np.float32)
    return Detail("freckles", middle, 0.5, (np.array(spots), radii, np.tile(tint, (45, 1))))
