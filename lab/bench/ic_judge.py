"""What `bench ic-portrait --portraits` compares: a profile, a style picture, and what a perfect method would paint.

The renderer draws the profile's person in the style's view and light, so that light can be compared exactly. All
pictures are Face Reference's square crop of the style picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from kornia.filters import gaussian_blur2d

from ...models.faces import FaceReference
from ...models.faces.crop import crop_square, resize
from ...models.faces.face import DetectedFace
from ...models.faces.mask import face_oval
from ...sampling.ic_passes import sized
from ..measures.detail import contrasts
from ..world.identity import identity
from ..world.portrait import Portrait, render
from ..world.shade import FACE_LABELS
from ..world.shards import HELD_OUT, view_of
from .judge import PEOPLE, VIEWS, Face, Judge, picture_of
from .portraits import SIZE, face_of, sitter
from .sources import digest, of_source

STYLE = 1
"""The view of its person that is the style picture; view 0 is the profile's."""
CROP = 1.6
"""Face Reference's crop_factor: its boxes of rendered faces are 0.85 of those that the nets learnt from, whose crops
were 1.25 to 1.45 of them."""
OTHERS = (0, 2, 3)
"""Views that tell who the style's person is: not the picture that every method begins with."""
BLUR = 8.0
"""Standard deviation, in pixels, of what is called light: finer than that is skin."""
AROUND = 1.6
"""The faces' ovals, so much larger, are no surroundings: hair may change with the person."""
COLUMNS = {
    "person": ("distance to the profile's person", 1, 3),
    "other": ("to the style's", 1, 3),
    "nearer": ("nearer to the profile's, %", 100, 0),
    "light": ("light, %", 100, 1),
    "around": ("surroundings, of 255", 1, 1),
    "moles": ("moles kept, %", 100, 0),
    "false": ("the style's moles left, %", 100, 0),
    "face": ("face found, %", 100, 0),
}


@dataclass(frozen=True)
class Pair:
    """A profile's person, by number among the held-out ones, and the style's."""

    person: int
    other: int

    @property
    def seed(self) -> int:
        return 1000 * self.person

    @property
    def noun(self) -> str:
        return sitter(self.person).record["subject"]


@dataclass(frozen=True, eq=False)
class Seen:
    """What the methods get. profile, style: from Face Reference. target: the perfect picture's crop, [3, S, S] in
    0..1, and its face, boolean [S, S]."""

    profile: FaceReference
    style: FaceReference
    target: torch.Tensor
    target_face: torch.Tensor


@lru_cache(maxsize=64)
def perfect(person: int, other: int) -> Portrait:
    """The profile's person in the style's view."""
    return render(identity(HELD_OUT + person), view_of(0, HELD_OUT + other, STYLE), SIZE)


@lru_cache(maxsize=64)
def seen(pair: Pair) -> Seen:
    shots = sitter(pair.person), sitter(pair.other, STYLE)
    profile, style = (face_of([shot.picture], crop_factor=CROP) for shot in shots)
    target, box = perfect(pair.person, pair.other), tuple(round(value) for value in style.box)
    face = torch.from_numpy(np.isin(target.labels, FACE_LABELS)).float()[None]
    shown, where = (resize(crop_square(each, box), SIZE, SIZE) for each in (picture_of(target), face))
    return Seen(profile, style, shown, where[0] > 0.5)


def style_oval(style: FaceReference, around: float = 1.0) -> torch.Tensor:
    """[S, S] in 0..1: the style's face."""
    scale = SIZE / style.crop.shape[1]
    landmarks = tuple((x * scale, y * scale) for x, y in style.landmarks)
    box = tuple(value * scale for value in style.face_box)
    return face_oval(DetectedFace(box, landmarks, 1.0), SIZE, around)


class Measures:
    """Numbers of one picture."""

    def __init__(self) -> None:
        self.judge = Judge()
        self.key = digest(self.judge.key, of_source("lab/measures", __file__))
        self.views = lru_cache(maxsize=2 * PEOPLE)(self._views)

    def __call__(self, pair: Pair, picture: torch.Tensor) -> dict[str, object]:
        """A value for each of COLUMNS, None where there is none to give, and `each`: the distances to all of the
        person's other views."""
        now, judge = seen(pair), self.judge
        face = judge.look(picture)
        row: dict[str, object] = dict.fromkeys(COLUMNS)
        style = sized(now.style.crop, SIZE)[0]
        outside = style_oval(now.style, AROUND) == 0
        row["around"] = float((picture - style).abs().mean(0)[outside].mean()) * 255
        row["light"] = light_error(picture, now.target, now.target_face)
        row["each"] = []
        row["face"] = float(face is not None)
        if face is None:
            moles = len(self.judge.known(pair.person)[1].radii)
            return row | {"nearer": 0.0, "moles": 0.0 if moles else None}
        row["each"] = [float((face.vector - own).norm()) for own in self.views(pair.person, VIEWS)]
        row["person"] = float(np.mean(row["each"]))
        row["other"] = float(np.mean([float((face.vector - own).norm()) for own in self.views(pair.other, OTHERS)]))
        row["nearer"] = float(row["person"] < row["other"])
        row["moles"] = self.share_of_moles(pair.person, picture, face)
        row["false"] = self.share_of_moles(pair.other, picture, face)
        return row

    def _views(self, person: int, views: tuple[int, ...]) -> list[torch.Tensor]:
        """[128] of each of these views of a person in which there is a face."""
        faces = (self.judge.look(picture_of(sitter(person, view))) for view in views)
        return [face.vector for face in faces if face is not None]

    def share_of_moles(self, person: int, picture: torch.Tensor, face: Face) -> float | None:
        moles = self.judge.known(person)[1]
        if not len(moles.radii):
            return None
        dark = contrasts(picture, moles.carried(face.landmarks))
        return float((dark > self.judge.cuts["detail"]).float().mean())


def light_error(picture: torch.Tensor, target: torch.Tensor, face: torch.Tensor) -> float:
    """Mean difference of how light falls on the face, in shares of its brightness: luminance without what is finer than
    BLUR, over its mean, of pictures [3, S, S] inside `face` [S, S]."""
    shades = []
    for each in (picture, target):
        grey = each.mean(0) * face
        smooth = blurred(grey) / blurred(face.float()).clamp(min=1e-3)
        shades.append(smooth / smooth[face].mean().clamp(min=1e-3))
    return float((shades[0] - shades[1]).abs()[face].mean())


def blurred(values: torch.Tensor) -> torch.Tensor:
    """[S, S] by a Gaussian of BLUR pixels."""
    size = 2 * round(3 * BLUR) + 1
    return gaussian_blur2d(values[None, None], (size, size), (BLUR, BLUR), border_type="replicate")[0, 0]
