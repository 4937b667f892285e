"""Out-of-focus backgrounds of the portrait world, painted from a random generator: no photograph, no licence to track.

Each painter draws on a small canvas in coordinates of 0 to 1 (x right, y down), so a generator's state gives the same
place at any size. The sides and the top matter most: a person stands in the middle.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.random import Generator

CANVAS = 128
"""Side of the canvas, in pixels: the blur of a portrait lens leaves nothing finer to draw."""
Y, X = (np.mgrid[:CANVAS, :CANVAS].astype(np.float32) + 0.5) / CANVAS


def flat(*rgb: float) -> np.ndarray:
    """A canvas of one colour, [CANVAS, CANVAS, 3]."""
    return np.broadcast_to(np.float32(rgb), (CANVAS, CANVAS, 3))


def ramp(top: tuple, bottom: tuple, start: float = 0.0, end: float = 1.0) -> np.ndarray:
    """From one colour at height `start` to another at `end`."""
    t = np.clip((Y - start) / (end - start), 0, 1)[..., None]
    return np.float32(top) * (1 - t) + np.float32(bottom) * t


def lay(under: np.ndarray, over: np.ndarray | tuple, mask: np.ndarray) -> np.ndarray:
    """`over` on `under` where `mask` [CANVAS, CANVAS] is 1."""
    return under + (np.asarray(over, np.float32) - under) * np.asarray(mask, np.float32)[..., None]


def noise(rng: Generator, across: int, down: int | None = None) -> np.ndarray:
    """Smooth noise of 0 to 1 with so many lumps across and down."""
    grid = rng.random((down or across, across), np.float32)
    return np.clip(cv2.resize(grid, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC), 0, 1)


def discs(under: np.ndarray, rng: Generator, count: int, colours: list, radius: tuple, box=(0, 0, 1, 1), strength=0.85):
    """Round lights, flowers or leaves of the given colours, anywhere in `box` (x0, y0, x1, y1)."""
    out = np.ascontiguousarray(under, np.float32)
    x0, y0, x1, y1 = (value * CANVAS * 16 for value in box)
    for _ in range(count):
        centre = int(rng.uniform(x0, x1)), int(rng.uniform(y0, y1))
        colour = np.float32(colours[rng.integers(len(colours))]) * rng.uniform(0.8, 1.15)
        cv2.circle(out, centre, int(rng.uniform(*radius) * CANVAS * 16), colour.tolist(), -1, cv2.LINE_AA, 4)
    return under + (out - under) * np.float32(strength)


def bars(under: np.ndarray, rng: Generator, count: int, colour: tuple, width: tuple, top=0.0, bottom=1.0) -> np.ndarray:
    """Upright bars, a little leaning and each of its own shade: trunks and poles."""
    for slot in rng.permutation(count):
        x = (slot + rng.uniform(0.1, 0.9)) / count + (Y - 0.5) * rng.normal(0, 0.06)
        inside = (np.abs(X - x) < rng.uniform(*width) / 2) & (Y > top) & (Y < bottom)
        under = lay(under, np.float32(colour) * np.float32(rng.uniform(0.6, 1.3)), inside)
    return under


def ridge(rng: Generator, height: float, rough: float, peaks: int) -> np.ndarray:
    """A horizon's height for each column, [1, CANVAS]: `peaks` random corners, or waves, about `height`."""
    xs = np.linspace(-0.1, 1.1, peaks) + rng.normal(0, 0.25 / peaks, peaks)
    return np.interp(X[:1], xs, height + rough * rng.uniform(-1, 1, peaks)).astype(np.float32)


def forest(rng: Generator) -> np.ndarray:
    leaves = noise(rng, 14) * 0.6 + noise(rng, 5) * 0.4
    place = lay(flat(0.05, 0.16, 0.06), (0.42, 0.62, 0.22), np.clip(leaves * 1.7 - 0.5, 0, 1))
    place = discs(place, rng, 14, [(0.85, 0.95, 0.6), (0.65, 0.85, 0.4)], (0.012, 0.03), (0, 0, 1, 0.45), 0.6)
    return bars(place, rng, int(rng.integers(6, 9)), (0.23, 0.15, 0.09), (0.035, 0.085))


def beach(rng: Generator) -> np.ndarray:
    horizon, shore = rng.uniform(0.3, 0.42), rng.uniform(0.56, 0.68)
    place = ramp((0.4, 0.68, 0.95), (0.85, 0.93, 0.97), 0, horizon)
    sea = ramp((0.05, 0.4, 0.6), (0.3, 0.78, 0.78), horizon, shore)
    place = lay(place, sea + 0.1 * (noise(rng, 5, 40) - 0.5)[..., None], Y > horizon)
    edge = shore + 0.025 * np.sin(X * rng.uniform(6, 12) + rng.uniform(0, 6))
    place = lay(place, (0.97, 0.98, 0.97), np.abs(Y - edge) < 0.025)
    return lay(place, np.float32((0.93, 0.82, 0.6)) * (0.9 + 0.15 * noise(rng, 16))[..., None], Y > edge + 0.02)


def brick_wall(rng: Generator) -> np.ndarray:
    courses = int(rng.integers(10, 14))
    height, row = np.modf(Y * courses + rng.random())
    along = X * courses * 0.45 + 0.5 * (row % 2) + rng.random()
    shade = rng.uniform(0.7, 1.2, (64, 64)).astype(np.float32)[row.astype(int) % 64, np.floor(along).astype(int) % 64]
    joint = (np.abs(np.modf(along)[0] - 0.5) > 0.45) | (np.abs(height - 0.5) > 0.39)
    return lay(np.float32((0.6, 0.25, 0.17)) * shade[..., None], (0.78, 0.73, 0.67), joint * 0.85)


def library(rng: Generator) -> np.ndarray:
    shelves, books = int(rng.integers(4, 6)), 26
    position = Y * shelves + rng.random()
    row = np.floor(position).astype(int)
    palette = np.float32(
        [
            (0.55, 0.12, 0.1),
            (0.12, 0.22, 0.42),
            (0.13, 0.34, 0.2),
            (0.8, 0.65, 0.35),
            (0.35, 0.2, 0.1),
            (0.75, 0.7, 0.62),
            (0.16, 0.13, 0.14),
        ]
    )
    shades = rng.uniform(0.75, 1.2, (shelves + 1, books, 1))
    spines = palette[rng.integers(0, len(palette), (shelves + 1, books))] * shades
    widths = np.cumsum(rng.uniform(0.5, 1.5, (shelves + 1, books)), 1)
    book = np.stack([np.searchsorted(w / w[-1], X[0]) for w in widths]).clip(0, books - 1)
    place = np.float32(spines)[row, book[row, np.arange(CANVAS)[None]]]
    within = position - row
    tall = rng.uniform(0.1, 0.3, (shelves + 1, books))[row, book[row, np.arange(CANVAS)[None]]]
    place = lay(place, (0.1, 0.06, 0.04), within < tall)
    return lay(place, (0.5, 0.32, 0.17), within > 0.87)


def snowy_field(rng: Generator) -> np.ndarray:
    horizon = ridge(rng, rng.uniform(0.42, 0.52), 0.03, 6)
    place = ramp((0.66, 0.74, 0.84), (0.86, 0.89, 0.93), 0, 0.5)
    trees = horizon - 0.06 - 0.12 * noise(rng, 22, 1)[:1]
    place = lay(place, (0.36, 0.43, 0.48), (Y > trees) & (Y < horizon))
    place = lay(place, np.float32((0.94, 0.96, 1.0)) - 0.12 * noise(rng, 4, 9)[..., None], Y > horizon)
    return discs(place, rng, 45, [(1, 1, 1)], (0.006, 0.014))


def city_at_night(rng: Generator) -> np.ndarray:
    place = ramp((0.02, 0.03, 0.11), (0.1, 0.08, 0.17))
    for _ in range(6):
        x, w, h = rng.uniform(-0.1, 1), rng.uniform(0.1, 0.25), rng.uniform(0.05, 0.5)
        place = lay(place, np.float32((0.07, 0.08, 0.15)) * rng.uniform(0.5, 1.6), (X > x) & (X < x + w) & (Y > h))
    lights = [(1, 0.72, 0.3), (1, 0.5, 0.2), (1, 0.9, 0.7), (0.35, 0.65, 1), (1, 0.25, 0.25)]
    return discs(place, rng, int(rng.integers(45, 65)), lights, (0.012, 0.042), (0, 0.05, 1, 1), 0.8)


def sunset(rng: Generator) -> np.ndarray:
    low = rng.uniform(0.55, 0.68)
    place = lay(
        ramp((0.3, 0.17, 0.45), (0.93, 0.35, 0.32), 0, low * 0.6),
        ramp((0.93, 0.35, 0.32), (1, 0.78, 0.3), low * 0.6, low),
        Y > low * 0.6,
    )
    streaks = np.clip(noise(rng, 3, 14) * 2 - 1.1, 0, 1) * (Y < low)
    place = lay(place, (0.98, 0.55, 0.45), streaks * 0.6)
    x, y = rng.choice([rng.uniform(0.06, 0.25), rng.uniform(0.75, 0.94)]), low - rng.uniform(0.06, 0.3)
    far = np.hypot(X - x, Y - y)
    place = lay(place, (1, 0.93, 0.6), np.maximum(far < 0.075, 0.6 * np.exp(-far * 8)))
    return lay(place, (0.15, 0.08, 0.16), Y > ridge(rng, low, 0.035, 8))


def garden(rng: Generator) -> np.ndarray:
    hedge = rng.uniform(0.12, 0.28)
    place = ramp((0.62, 0.82, 0.97), (0.85, 0.93, 0.97), 0, hedge)
    green = lay(flat(0.2, 0.45, 0.13), (0.5, 0.75, 0.28), noise(rng, 16))
    place = lay(place, green, Y > hedge + 0.05 * (noise(rng, 9, 1) - 0.5))
    flowers = [(0.95, 0.35, 0.6), (0.98, 0.85, 0.25), (0.98, 0.97, 0.95), (0.85, 0.15, 0.2), (0.7, 0.4, 0.85)]
    chosen = [flowers[i] for i in rng.permutation(len(flowers))[:3]]
    return discs(place, rng, int(rng.integers(55, 80)), chosen, (0.015, 0.032), (0, hedge + 0.08, 1, 1), 0.95)


def kitchen(rng: Generator) -> np.ndarray:
    doors, bottom, counter = int(rng.integers(3, 5)), rng.uniform(0.28, 0.38), rng.uniform(0.66, 0.76)
    wood = np.float32((0.72, 0.5, 0.3)) * rng.uniform(0.8, 1.1)
    tiles = 11
    joint = (np.modf(X * tiles)[0] < 0.14) | (np.modf(Y * tiles)[0] < 0.14)
    place = lay(flat(0.93, 0.93, 0.88), (0.7, 0.76, 0.75), joint)
    along = np.modf(X * doors + rng.random())[0]
    panel = np.maximum(np.abs(along - 0.5) * 2 / doors, np.abs(Y - bottom / 2) * 2 - bottom + 1 / doors) * doors
    cupboard = lay(flat(*wood), wood * 0.5, (panel > 0.93) | (np.abs(panel - 0.68) < 0.05))
    cupboard = lay(cupboard, (0.9, 0.9, 0.9), (np.abs(along - 0.85) < 0.03) & (np.abs(Y - bottom + 0.12) < 0.03))
    place = lay(place, cupboard, Y < bottom)
    jars = [(0.8, 0.2, 0.15), (0.25, 0.5, 0.3), (0.9, 0.75, 0.3), (0.3, 0.45, 0.65)]
    for x in (rng.uniform(0.02, 0.2), rng.uniform(0.75, 0.93)):
        jar = (np.abs(X - x) < 0.045) & (Y > counter - rng.uniform(0.1, 0.2)) & (Y < counter)
        place = lay(place, jars[rng.integers(len(jars))], jar)
    place = lay(place, wood * 0.9, Y > counter + 0.05)
    return lay(place, (0.3, 0.29, 0.3), (Y > counter) & (Y < counter + 0.05))


def desert(rng: Generator) -> np.ndarray:
    place = ramp((0.5, 0.7, 0.88), (0.97, 0.9, 0.75), 0, 0.45)
    for depth in range(4):
        phase, pace = rng.uniform(0, 6), rng.uniform(4, 8)
        crest = 0.36 + 0.15 * depth + 0.05 * np.sin(X * pace + phase)
        lit = np.clip(0.5 + 0.9 * np.cos(X * pace + phase), 0.15, 1) * np.exp(-(Y - crest) * 4)
        dune = lay(flat(0.72, 0.43, 0.2), (0.97, 0.75, 0.42), np.clip(lit, 0, 1))
        place = lay(place, dune + 0.05 * np.sin(Y * 120 + X * 9)[..., None], Y > crest)
    return place


def grey_studio(rng: Generator) -> np.ndarray:
    x, y, reach = rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.55), rng.uniform(0.35, 0.55)
    glow = np.exp(-((X - x) ** 2 + (Y - y) ** 2) / (2 * reach**2)) + 0.12 * (noise(rng, 4) - 0.5)
    return (rng.uniform(0.2, 0.3) + 0.45 * glow)[..., None] * np.float32((1, 1, 1.02))


def office(rng: Generator) -> np.ndarray:
    wall, left = ramp((0.8, 0.81, 0.82), (0.68, 0.69, 0.72)), rng.uniform(-0.15, 0.0)
    top, bottom, panes = rng.uniform(0.03, 0.1), rng.uniform(0.6, 0.72), int(rng.integers(2, 4))
    blinds = 0.5 + 0.5 * np.sin(Y * 2 * np.pi * rng.uniform(15, 19))
    glass = lay(flat(0.5, 0.66, 0.82), (0.92, 0.96, 1.0), blinds)
    along = np.modf((X - left) * panes / 1.1)[0]
    place = lay(wall, (0.3, 0.33, 0.38), (Y > top) & (Y < bottom))
    place = lay(place, glass, (Y > top + 0.02) & (Y < bottom - 0.02) & (np.abs(along - 0.5) < 0.46))
    place = lay(place, (0.32, 0.36, 0.42), Y > bottom + 0.12)
    x = rng.choice([rng.uniform(0.02, 0.12), rng.uniform(0.85, 0.95)])
    plant = (np.hypot((X - x) * 1.2, (Y - bottom + 0.1) * 0.7) < 0.1) * np.clip(noise(rng, 18) * 2, 0, 1)
    return lay(place, (0.15, 0.4, 0.2), plant)


def mountains(rng: Generator) -> np.ndarray:
    place = ramp((0.25, 0.5, 0.85), (0.8, 0.89, 0.97), 0, 0.5)
    peaks = ridge(rng, 0.28, 0.16, int(rng.integers(6, 9)))
    rock = lay(flat(0.34, 0.4, 0.52), (0.5, 0.55, 0.65), noise(rng, 10, 5))
    rock = lay(rock, (0.97, 0.98, 1), (Y - peaks) < 0.06 + 0.12 * noise(rng, 14))
    place = lay(place, rock, Y > peaks)
    place = lay(place, (0.23, 0.35, 0.42), Y > ridge(rng, 0.55, 0.07, 7))
    return lay(place, (0.16, 0.3, 0.2), Y > ridge(rng, 0.72, 0.05, 9) + 0.03 * noise(rng, 30, 1))


def cafe(rng: Generator) -> np.ndarray:
    place = lay(ramp((0.2, 0.11, 0.06), (0.42, 0.26, 0.15)), (0.52, 0.33, 0.18), (np.modf(X * 9)[0] < 0.5) * 0.35)
    board = rng.choice([rng.uniform(-0.05, 0.05), rng.uniform(0.68, 0.78)])
    inside = (X > board) & (X < board + 0.27) & (Y > 0.33) & (Y < 0.62)
    place = lay(place, (0.07, 0.1, 0.09), inside)
    place = lay(place, (0.8, 0.8, 0.75), inside & (np.modf(Y * 17)[0] < 0.35) & (np.abs(X - board - 0.13) < 0.09))
    for slot in range(4):
        x, y = (slot + rng.uniform(0.3, 0.7)) / 4, rng.uniform(0.1, 0.24)
        place = lay(place, (0.05, 0.04, 0.04), (np.abs(X - x) < 0.006) & (Y < y))
        far = np.hypot(X - x, Y - y)
        place = lay(place, (1, 0.78, 0.42), np.maximum(far < 0.05, 0.75 * np.exp(-far * 11)))
    return lay(place, (0.3, 0.17, 0.09), Y > 0.8)


def red_curtain(rng: Generator) -> np.ndarray:
    sway = X * rng.uniform(7, 10) + 0.25 * noise(rng, 4, 2) + rng.random()
    fold = 0.5 + 0.5 * np.sin(sway * 2 * np.pi) * (0.8 + 0.2 * noise(rng, 7, 2))
    return lay(flat(0.28, 0.01, 0.04), (0.82, 0.1, 0.13), fold) * (1.05 - 0.25 * Y)[..., None]


def blue_sky(rng: Generator) -> np.ndarray:
    clouds = noise(rng, 4, 5) * 0.6 + noise(rng, 9, 12) * 0.4
    return lay(ramp((0.16, 0.42, 0.86), (0.52, 0.77, 0.98)), (1, 1, 1), np.clip(clouds * 4 - 2.1, 0, 0.95))


def autumn_park(rng: Generator) -> np.ndarray:
    leaves = [(0.9, 0.45, 0.1), (0.96, 0.68, 0.15), (0.75, 0.22, 0.08), (0.85, 0.55, 0.2)]
    ground = rng.uniform(0.62, 0.72)
    place = lay(ramp((0.92, 0.8, 0.58), (0.95, 0.86, 0.68)), (0.8, 0.5, 0.22), (Y > ground) * 0.9)
    place = bars(place, rng, 4, (0.27, 0.18, 0.13), (0.03, 0.07), 0, ground + 0.03)
    place = discs(place, rng, 100, leaves, (0.02, 0.05), (0, 0, 1, 0.42), 0.9)
    return discs(place, rng, 50, leaves, (0.012, 0.025), (0, ground, 1, 1), 0.8)


def lavender_field(rng: Generator) -> np.ndarray:
    horizon, eye = rng.uniform(0.22, 0.34), rng.uniform(0.35, 0.65)
    place = ramp((0.72, 0.82, 0.95), (0.99, 0.9, 0.8), 0, horizon)
    place = lay(place, (0.3, 0.42, 0.34), (Y < horizon) & (Y > horizon - 0.02 - 0.07 * noise(rng, 12, 1)))
    row = np.cos((X - eye) / np.maximum(Y - horizon + 0.06, 0.02) * rng.uniform(8, 11) + rng.uniform(0, 6))
    rows = lay(flat(0.3, 0.36, 0.2), (0.6, 0.38, 0.82), np.clip(row * 1.5 + 0.75, 0, 1))
    return lay(place, rows * (0.85 + 0.3 * noise(rng, 26))[..., None], Y > horizon)


def aquarium(rng: Generator) -> np.ndarray:
    place = ramp((0.3, 0.85, 0.9), (0.0, 0.22, 0.45))
    ray = np.sin((X + (Y + 0.4) * rng.uniform(-0.4, 0.4)) * rng.uniform(16, 24) + 2 * noise(rng, 4, 1))
    place = lay(place, (0.65, 1, 1), np.clip(ray, 0, 1) * np.clip(0.75 - Y, 0, 1) * 0.6)
    for _ in range(int(rng.integers(9, 14))):
        x, y, s, way = rng.random(), rng.random(), rng.uniform(0.03, 0.055), rng.choice([-1, 1])
        u, v = (X - x) * way / s, (Y - y) / s
        fish = (u**2 + (v / 0.5) ** 2 < 1) | ((u < -0.7) & (u > -1.6) & (np.abs(v) < (-u - 0.6) * 0.6))
        place = lay(place, [(1, 0.6, 0.1), (1, 0.9, 0.25), (0.95, 0.95, 0.98)][rng.integers(3)], fish)
    return place


PHRASES: dict[str, str] = {
    "forest": "in a forest",
    "beach": "on a beach",
    "brick wall": "in front of a brick wall",
    "library": "in a library",
    "snowy field": "in a snowy field",
    "city at night": "in a city at night",
    "sunset": "at sunset",
    "garden": "in a garden",
    "kitchen": "in a kitchen",
    "desert": "in a desert",
    "grey studio": "in a grey studio",
    "office": "in an office",
    "mountains": "in the mountains",
    "cafe": "in a cafe",
    "red curtain": "in front of a red curtain",
    "blue sky": "under a blue sky",
    "autumn park": "in an autumn park",
    "lavender field": "in a lavender field",
    "aquarium": "at an aquarium",
}
"""How a caption says where somebody is."""

BACKGROUNDS: dict[str, Callable[[Generator], np.ndarray]] = {
    name: globals()[name.replace(" ", "_")] for name in PHRASES
}
"""The painter of each background: from a generator to [CANVAS, CANVAS, 3]."""


def background(name: str, rng: Generator, size: int) -> np.ndarray:
    """One place, out of focus: [size, size, 3] float32, display colours of 0 to 1; layout, hue and light vary.

    Raises ValueError for a name that BACKGROUNDS lacks.
    """
    if name not in BACKGROUNDS:
        raise ValueError(f"There is no background {name!r}: choose one of {', '.join(BACKGROUNDS)}.")
    place = np.asarray(BACKGROUNDS[name](rng), np.float32)
    place = place * np.float32(rng.uniform(0.86, 1.08) * rng.normal(1, 0.025, 3))
    place = place if rng.random() < 0.5 else place[:, ::-1]
    place = cv2.GaussianBlur(np.clip(place, 0, 1), (0, 0), rng.uniform(0.8, 1.4))
    return np.clip(cv2.resize(place, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1)
