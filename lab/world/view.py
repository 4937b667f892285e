"""How a person is pictured: everything that may change from one portrait of a person to the next, and its caption."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .backgrounds import BACKGROUNDS, PHRASES
from .garments import COLOURS, GARMENTS
from .looks import told

EXPRESSIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "smiling": {"mouthSmile": 0.9, "cheekSquint": 0.5, "eyeSquint": 0.2},
    "laughing": {"mouthSmile": 1.0, "jawOpen": 0.35, "cheekSquint": 0.8, "eyeSquint": 0.4, "mouthUpperUp": 0.4},
    "sad": {"mouthFrown": 1.0, "browInnerUp": 1.0, "mouthShrugLower": 0.5, "eyeLookDown": 0.3},
    "angry": {"browDown": 1.0, "noseSneer": 0.7, "mouthPress": 0.6, "mouthFrown": 0.5, "eyeSquint": 0.4},
    "surprised": {"jawOpen": 0.6, "browInnerUp": 1.0, "browOuterUp": 1.0, "eyeWide": 1.0, "mouthFunnel": 0.3},
    "pouting": {"mouthPucker": 1.0, "mouthFunnel": 0.3},
    "winking": {"eyeBlinkLeft": 1.0, "mouthSmile": 0.5, "cheekSquintLeft": 0.6},
    "sleeping": {"eyeBlink": 1.0},
}
"""Word of the caption -> MakeHuman's face units and their weights; a unit without a side moves both."""
LIGHTS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float], float]] = {
    "front": ((0.1, 0.4, 1.0), (1.0, 0.98, 0.95), 0.55),
    "left": ((-0.9, 0.4, 0.6), (1.0, 0.97, 0.92), 0.45),
    "right": ((0.9, 0.4, 0.6), (1.0, 0.97, 0.92), 0.45),
    "top": ((0.0, 1.0, 0.5), (1.0, 1.0, 1.0), 0.50),
    "evening": ((0.7, 0.15, 0.7), (1.1, 0.88, 0.68), 0.45),
    "window": ((-0.7, 0.5, 0.7), (0.88, 0.96, 1.08), 0.50),
    "soft": ((0.0, 0.5, 0.8), (1.0, 1.0, 1.0), 0.68),
    "rim": ((-0.5, 0.6, 0.3), (1.05, 1.0, 0.95), 0.55),
}
"""Name -> direction towards the light, its colour, the share of light that comes from everywhere."""


@dataclass(frozen=True)
class View:
    """Angles in degrees, `face_height` (hairline to chin) as a share of the picture's height, `x`, `y` the place of
    the point between the eyes as shares of the picture. `worn`: of attributes.ATTRIBUTES; no caption names it."""

    expression: str
    garment: str
    colour: str
    background: str
    light: str
    yaw: float
    pitch: float
    roll: float
    face_height: float
    x: float
    y: float
    seed: int
    worn: tuple[str, ...] = ()


@dataclass(frozen=True)
class Framing:
    """How near the camera is: ranges of a random view's face height and place, and what a reference has, as shares of
    the picture (`View`)."""

    face_height: tuple[float, float]
    x: tuple[float, float]
    y: tuple[float, float]
    reference_face_height: float
    reference_y: float


FRAMINGS = {
    "sitter": Framing((0.48, 0.62), (0.45, 0.55), (0.38, 0.44), 0.55, 0.42),
    "close": Framing((0.60, 0.74), (0.47, 0.53), (0.42, 0.47), 0.67, 0.445),
}
"""A face of half the picture's height gives a mouth five latents of the model; of a third, three, and the model then
never learnt to smile. Close, a face has 19 to 24 latents of 32."""


def random_view(rng: np.random.Generator, framing: Framing = FRAMINGS["sitter"]) -> View:
    """One of all views of somebody who sits for a portrait: near, turned a little. Every class is as likely as the
    others of its kind. The same generator gives the same view in another framing, but for size and place."""
    return View(
        expression=str(rng.choice(list(EXPRESSIONS))),
        garment=str(rng.choice(list(GARMENTS))),
        colour=str(rng.choice(list(COLOURS))),
        background=str(rng.choice(list(BACKGROUNDS))),
        light=str(rng.choice(list(LIGHTS))),
        yaw=float(np.clip(rng.normal(0, 11), -25, 25)),
        pitch=float(np.clip(rng.normal(0, 5), -12, 12)),
        roll=float(np.clip(rng.normal(0, 3), -8, 8)),
        face_height=float(rng.uniform(*framing.face_height)),
        x=float(rng.uniform(*framing.x)),
        y=float(rng.uniform(*framing.y)),
        seed=int(rng.integers(2**31)),
    )


def reference_view(rng: np.random.Generator, framing: Framing = FRAMINGS["sitter"]) -> View:
    """A passport photograph: frontal, neutral, evenly lit, the face large. What an identity is read from."""
    return View(
        expression="neutral",
        garment=str(rng.choice(list(GARMENTS))),
        colour=str(rng.choice(list(COLOURS))),
        background="grey studio",
        light="soft",
        yaw=float(rng.normal(0, 4)),
        pitch=float(rng.normal(0, 2)),
        roll=0.0,
        face_height=framing.reference_face_height,
        x=0.5,
        y=framing.reference_y,
        seed=int(rng.integers(2**31)),
    )


def caption(subject: str, view: View) -> str:
    """What the picture shows, in words; nothing of who it is but the subject's word."""
    return describe(subject, view.expression, view.colour, view.garment, view.background)


def describe(
    subject: str, expression: str, colour: str | None, garment: str | None, background: str | None, looks: str = ""
) -> str:
    """A caption of these words; None leaves a part out, and `neutral` is never said. looks: what follows the noun."""
    who = subject if expression == "neutral" else f"{expression} {subject}"
    clothes = f" in {with_article(f'{colour} {garment}' if colour else garment)}" if garment else ""
    place = f" {PHRASES[background]}" if background else ""
    return with_article(who) + looks + clothes + place


def retold(record: dict, rng: np.random.Generator) -> str:
    """The caption of a portrait's record as another person might put it: half of the time whole, else with parts left
    out; two times in three with something of what the person looks like; sometimes as "a photo of …". A model that
    learns from these takes short prompts too."""
    keep = rng.uniform(size=3) < (1.0 if rng.uniform() < 0.5 else 0.6)
    who, more = record["subject"], ""
    if rng.uniform() < 2 / 3:
        who, more = told(who, record.get("looks", ()), rng)
    text = describe(
        who,
        record["expression"] if keep[0] else "neutral",
        record["colour"] if keep[1] else None,
        record["garment"] if keep[1] else None,
        record["background"] if keep[2] else None,
        more,
    )
    opening = rng.choice(("", "a photo of ", "a portrait of "), p=(0.6, 0.3, 0.1))
    return opening + text


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def face_units(expression: str) -> dict[str, float]:
    """MakeHuman's targets of an expression with their weights. ValueError names the expressions there are."""
    if expression not in EXPRESSIONS:
        raise ValueError(f"There is no expression {expression!r}: use one of {', '.join(EXPRESSIONS)}.")
    targets = {}
    for unit, weight in EXPRESSIONS[expression].items():
        sides = ("",) if unit in ONE_SIDED or unit.endswith(("Left", "Right")) else ("Left", "Right")
        for side in sides:
            name = f"faceunits01/targets/faceunits/{unit}{side}.target"
            targets[name] = targets.get(name, 0.0) + weight
    return targets


ONE_SIDED = ("jawOpen", "browInnerUp", "mouthShrugLower", "mouthFunnel", "mouthPucker")
