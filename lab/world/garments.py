"""Clothes painted on the resting body: which points a garment covers, and in what colour.

Points are [N, 3] in decimetres, origin midway between the eyes, x to the person's left, y up, z forward. The neck is
about 0.9 wide and runs from y = -1.2 to the shoulders' ridge at y = -1.55, which slopes only beyond |x| = 2; in front
it meets the chest near y = -2.1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.78, 0.08, 0.1),
    "orange": (0.96, 0.48, 0.06),
    "yellow": (0.97, 0.83, 0.15),
    "green": (0.1, 0.52, 0.2),
    "turquoise": (0.15, 0.72, 0.72),
    "blue": (0.1, 0.25, 0.75),
    "purple": (0.45, 0.15, 0.62),
    "pink": (0.97, 0.55, 0.7),
    "brown": (0.4, 0.24, 0.13),
    "black": (0.09, 0.09, 0.1),
    "white": (0.93, 0.93, 0.92),
}
"""Display colours of 0 to 1."""
WHITE = np.float32((0.93, 0.93, 0.91))
SOFT = 0.02
"""Half the width, in decimetres, of a painted edge: about a pixel, against stair steps."""
Painted = tuple[np.ndarray, np.ndarray]


def step(distance: np.ndarray) -> np.ndarray:
    """1 where `distance` (decimetres) is positive, 0 where negative, with a soft edge."""
    return np.clip(distance / (2 * SOFT) + 0.5, 0, 1)


def line(distance: np.ndarray, width: float) -> np.ndarray:
    """1 on a line of this width where `distance` is 0."""
    return step(width / 2 - np.abs(distance))


def wave(along: np.ndarray, period: float, share: float = 0.5) -> np.ndarray:
    """1 on bands that fill `share` of each period, 0 between."""
    return step((share / 2 - np.abs(np.modf(along / period + 100.5)[0] - 0.5)) * period)


def lay(under: np.ndarray, over: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`over` (one colour or [N, 3]) on `under` [N, 3] where `mask` [N] is 1."""
    return under + (over - under) * mask[:, None]


def plain(points: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return np.repeat(colour[None], len(points), 0)


def accent(colour: np.ndarray) -> np.ndarray:
    """What shows up on this colour: white on dark, navy on light."""
    return WHITE if colour @ np.float32((0.3, 0.6, 0.1)) < 0.62 else np.float32((0.1, 0.12, 0.28))


def shade(colour: np.ndarray, strength: float = 0.55) -> np.ndarray:
    """The same colour for seams and ribs: darker, but lighter where it is black already."""
    return colour * strength if colour.max() > 0.25 else colour + 0.16


def below(points: np.ndarray, width: float, front: float, back: float = -1.62, power: float = 2.0) -> np.ndarray:
    """[N] decimetres, roughly, outside a neck opening: half of a superellipse as seen from the front.

    It hangs from y = -1.3, is `width` to each side, and reaches down to `front` on the chest, `back` on the nape.
    A `power` of 1 makes a V, 2 a round neck, more a square one.
    """
    x, y, z = points.T
    facing = np.clip((z + 1.35) / 0.5, 0, 1)
    depth = (-1.3 - back) + (back - front) * facing
    across = np.maximum(np.abs(x) / width, 1e-3) ** power
    down = (np.maximum(-1.3 - y, 0) / depth) ** power
    return np.where(y < -1.3, (across + down) ** np.float32(1 / power) - 1, -1) * width


def t_shirt(points: np.ndarray, colour: np.ndarray) -> Painted:
    edge = below(points, 0.86, -2.2)
    albedo = lay(plain(points, colour), shade(colour, 0.72), step(0.16 - edge))
    return edge > 0, lay(albedo, shade(colour), line(edge - 0.16, 0.04))


def striped_shirt(points: np.ndarray, colour: np.ndarray) -> Painted:
    edge = below(points, 0.95, -2.15, power=2.4)
    albedo = lay(plain(points, colour), accent(colour), wave(points[:, 1], 0.56))
    return edge > 0, lay(albedo, colour, step(0.12 - edge))


def checked_shirt(points: np.ndarray, colour: np.ndarray) -> Painted:
    x, y, _ = points.T
    edge = below(points, 0.74, -2.3, power=1.2)
    across, down = wave(x + 0.15, 0.6), wave(y, 0.6)
    albedo = lay(plain(points, colour), accent(colour), 1 - 0.5 * (across + down))
    albedo = lay(albedo, colour * 0.55, across * down * 0.3)
    albedo = lay(albedo, shade(colour, 0.45), line(np.abs(x) - 0.17, 0.05) * step(-2.35 - y))
    collar = step(0.4 - edge) * step(y + 2.5)
    albedo = lay(albedo, colour, collar)
    albedo = lay(albedo, shade(colour, 0.45), line(edge - 0.4, 0.06) * step(y + 2.5))
    return edge > 0, lay(
        albedo, accent(colour), step(0.07 - np.hypot(x, np.modf(y / 0.55 + 100.5)[0] * 0.55 - 0.275)) * step(-2.4 - y)
    )


def turtleneck(points: np.ndarray, colour: np.ndarray) -> Painted:
    x, y, z = points.T
    top = -1.36 - 0.12 * (z + 1)
    ribs = wave(np.arctan2(x, z + 1.0) * 0.6, 0.13)
    collar = step(y - top + 0.5) * step(0.95 - np.hypot(x, (z + 1) * 0.9))
    albedo = lay(plain(points, colour), shade(colour, 0.8), wave(x, 0.3) * 0.7)
    albedo = lay(albedo, lay(plain(points, colour), shade(colour, 0.7), ribs), collar)
    return y < top, lay(albedo, shade(colour, 0.45), line(y - top + 0.5, 0.07) * step(0.95 - np.hypot(x, z + 1)))


def suit(points: np.ndarray, colour: np.ndarray) -> Painted:
    x, y, z = points.T
    side, front = np.abs(x), step(z + 1.1)
    edge = below(points, 0.66, -1.95, -1.5, 1.3)
    opening = below(points, 0.95, -4.0, -1.6, 1.0)
    albedo = lay(plain(points, colour), shade(colour, 0.78), step(0.42 - opening) * front)
    albedo = lay(albedo, shade(colour, 0.4), line(opening - 0.42, 0.06) * front)
    albedo = lay(albedo, shade(colour, 0.4), line(y + 2.55 + 0.5 * (side - 0.9), 0.06) * step(0.42 - opening) * front)
    albedo = lay(albedo, shade(colour, 0.35), line(x, 0.06) * step(-4.0 - y))
    shirt = WHITE if colour.min() < 0.8 else np.float32((0.55, 0.72, 0.92))
    albedo = lay(albedo, shirt, step(-opening))
    albedo = lay(albedo, shirt * 0.68, line(edge - 0.3, 0.05) * step(y + 2.35) * step(-opening))
    tie = np.float32((0.6, 0.08, 0.12)) if colour[0] < 0.5 else np.float32((0.12, 0.14, 0.32))
    knot = step(0.17 + 0.35 * (y + 2.15) - side) * step(y + 2.32) * step(-1.9 - y)
    blade = step(0.12 + 0.07 * (-2.3 - y) - side) * step(-2.3 - y)
    return edge > 0, lay(albedo, tie, np.maximum(knot, blade) * step(-opening) * front)


def hoodie(points: np.ndarray, colour: np.ndarray) -> Painted:
    x, y, z = points.T
    edge = below(points, 0.72, -2.1, -1.45)
    albedo = lay(plain(points, colour), shade(colour, 0.68), step(0.55 - edge))
    albedo = lay(albedo, shade(colour, 0.4), line(edge - 0.55, 0.09))
    albedo = lay(albedo, shade(colour, 0.4), line(edge - 0.06, 0.1))
    albedo = lay(albedo, np.float32((0.75, 0.75, 0.77)), line(x, 0.09) * step(-2.25 - y))
    cords = line(np.abs(x) - 0.42 - 0.03 * np.sin(y * 5), 0.11) * step(-2.3 - y) * step(y + 3.5)
    return edge > 0, lay(albedo, accent(colour), cords * step(z + 1.1))


def polka_dot_dress(points: np.ndarray, colour: np.ndarray) -> Painted:
    x, y, z = points.T
    edge = below(points, 1.35, -2.75, -1.9, 2.6)
    column, row = x / 0.5, y / 0.45
    column = column + 0.5 * (np.floor(row) % 2)
    dots = step(0.14 - np.hypot((column - np.floor(column) - 0.5) * 0.5, (row - np.floor(row) - 0.5) * 0.45))
    return edge > 0, lay(plain(points, colour), accent(colour), dots * step(edge - 0.08))


def v_neck_sweater(points: np.ndarray, colour: np.ndarray) -> Painted:
    edge = below(points, 0.86, -3.0, power=1.05)
    albedo = lay(plain(points, colour), shade(colour, 0.82), wave(points[:, 0], 0.34) * 0.6)
    albedo = lay(albedo, accent(colour), line(edge - 0.2, 0.07))
    return edge > 0, lay(albedo, shade(colour, 0.7), step(0.1 - edge))


def tank_top(points: np.ndarray, colour: np.ndarray) -> Painted:
    x, y, _ = points.T
    edge = below(points, 1.05, -2.75, -2.2, 2.2)
    arm = 1.62 + 0.25 * np.clip(-2.2 - y, 0, 3) ** 1.5 - np.abs(x)
    hem = np.minimum(edge, arm)
    albedo = lay(plain(points, colour), accent(colour), line(hem - 0.13, 0.07))
    return hem > 0, albedo


def denim_jacket(points: np.ndarray, colour: np.ndarray) -> Painted:
    x, y, z = points.T
    side, front, thread = np.abs(x), step(z + 1.1), np.float32((0.9, 0.66, 0.3))
    edge = below(points, 0.72, -2.15)
    opening = np.where(z > -1.1, side - 0.72 + 0.06 * (y + 2), edge)
    albedo = lay(plain(points, colour), colour * 0.75 + 0.1, wave(x + y, 0.2) * 0.5)
    collar = step(0.5 - opening) * step(y + 2.75 - 0.5 * (side - 0.7)) * front
    albedo = lay(albedo, shade(colour, 0.65), np.maximum(collar, step(0.35 - edge) * (1 - front)))
    albedo = lay(albedo, thread, line(opening - 0.5, 0.07) * step(y + 2.75) * front)
    albedo = lay(albedo, thread, line(opening - 0.14, 0.06) * step(-2.75 - y) * front)
    albedo = lay(albedo, thread, line(y + 3.05, 0.07) * step(opening - 0.14) * front)
    albedo = lay(albedo, shade(colour, 0.35), line(opening, 0.07) * front)
    albedo = lay(albedo, accent(colour), step(-opening) * front)
    return edge > 0, lay(albedo, shade(accent(colour), 0.75), line(edge - 0.14, 0.05) * step(-opening) * front)


def apron(points: np.ndarray, colour: np.ndarray) -> Painted:
    x, y, z = points.T
    side = np.abs(x)
    edge = below(points, 0.86, -2.15)
    brass = np.float32((0.88, 0.7, 0.25))
    shirt = lay(plain(points, accent(colour)), shade(accent(colour), 0.72), line(edge - 0.14, 0.05))
    strap = step(0.22 - np.abs(side - 1.12 - 0.06 * (y + 2)))
    bib = step(-3.0 - y) * step(1.35 - side + 0.5 * np.maximum(-3.4 - y, 0)) * step(z + 1.1)
    albedo = lay(shirt, colour, np.maximum(strap, bib))
    albedo = lay(albedo, shade(colour), line(y + 3.12, 0.05) * bib)
    return edge > 0, lay(albedo, brass, step(0.13 - np.hypot(side - 1.05, y + 3.05)) * step(z + 1.1))


GARMENTS: dict[str, Callable[[np.ndarray, np.ndarray], Painted]] = {
    "t-shirt": t_shirt,
    "striped shirt": striped_shirt,
    "checked shirt": checked_shirt,
    "turtleneck": turtleneck,
    "suit": suit,
    "hoodie": hoodie,
    "polka dot dress": polka_dot_dress,
    "v-neck sweater": v_neck_sweater,
    "tank top": tank_top,
    "denim jacket": denim_jacket,
    "apron": apron,
}


def wear(garment: str, colour: str, points: np.ndarray) -> Painted:
    """(covered [N] bool, albedo [N, 3] float32 display colours of 0 to 1) for points [N, 3] on the resting body.

    The albedo of points that are not covered has no meaning. Raises ValueError for an unknown garment or colour.
    """
    if garment not in GARMENTS:
        raise ValueError(f"There is no garment {garment!r}: choose one of {', '.join(GARMENTS)}.")
    if colour not in COLOURS:
        raise ValueError(f"There is no colour {colour!r}: choose one of {', '.join(COLOURS)}.")
    covered, albedo = GARMENTS[garment](np.asarray(points, np.float32), np.float32(COLOURS[colour]))
    return covered, np.clip(albedo, 0, 1, dtype=np.float32)
