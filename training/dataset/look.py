"""From a picture to a sample, or the reason why it is none: one upright face, a person around it, a noun.

The same for a picture of the web and for a photograph of a folder (photos.py).
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from ...models.faces.crop import MAX_SIDE, MIN_SIDE, crop_square, paste, square_around
from ...models.faces.detector import AUTO, DETECTION_MAX, Backend, choose_backend, find_faces
from ...models.faces.face import DetectedFace
from ...models.faces.mask import face_oval, near_face
from ...models.faces.mtcnn import MIN_FACE, BuiltInDetector
from ...sampling.words import find_noun, has_word
from ..data.index import EMPTY_MASK, TWO_FACES, BadSample
from . import models
from .picture import encode, open_picture
from .reasons import CHILD, DOUBTFUL_FACE, NO_FACE, NO_NOUN, NO_PERSON, NOT_UPRIGHT, SMALL_FACE
from .recipe import Face, Recipe
from .select import CHILDREN, MORE_CHILDREN, subjects

FIRST_SIDE, FIRST_FACE = 480, 40.0
"""The first look: longer side of the picture and least side of a face, pixels. It settles most pictures. The mask has
that size too: training reads masks of any, and needs an eighth of the picture's."""
CROP = 2.0
"""Side of the square in which a mask is made, in sides of the face."""
TOLD = ("source", "license", "uid", "identity")
"""What a sample takes over from its row."""

Reduced = tuple[torch.Tensor, float]
"""A picture made smaller, [3, H, W] in 0..1, and its scale."""


@dataclass(frozen=True)
class Sample:
    """entry: the ledger's columns. files: of the sample, by extension."""

    entry: dict
    files: dict[str, bytes]


class Look:
    """Loads its models once; then `look(row, content)` for one picture after another."""

    def __init__(self, recipe: Recipe, words: tuple[str, ...] | None = None) -> None:
        """words: nouns that may stand for the person (default: the recipe's)."""
        self.recipe, self.subjects = recipe, words or subjects(recipe)
        self.backend = choose_backend(AUTO, tuple(map(models.folder, recipe.face.facexlib)))
        self.persons = recipe.person.model and models.Persons(recipe.person.model, recipe.person.score)
        self.captions = recipe.caption.model and models.Captions(recipe.caption.model, recipe.caption.tokens)
        self.face_seconds = 0.0

    def __call__(self, row: dict, content: bytes) -> Sample:
        """row: of the unit. content: the file as fetched. BadSample with the reason."""
        self.face_seconds = 0.0
        subject = "" if self.captions else self.noun(row["text"], row.get("subject"))  # before the costly looks
        picture = open_picture(content, self.recipe.picture)
        sample = self.sample(row, picture, subject)
        return Sample(sample.entry | {"phash": near_hash(picture)}, sample.files)

    def sample(self, row: dict, picture: Image.Image, subject: str) -> Sample:
        """row: its text, and what of TOLD is known. subject: the noun in the text. BadSample with the reason."""
        began = time.thread_time()
        try:
            small = reduced(picture, FIRST_SIDE)
            face = only_face(picture, small, self.backend, self.recipe.face)
        finally:
            self.face_seconds = time.thread_time() - began
        person = self._person(picture, face)
        mask = self._mask(picture, small, face)
        caption = row["text"]
        if self.captions:
            caption = self.captions(picture)
            subject = self.noun(caption)
        entry = {
            "caption": caption, "subject": subject,
            "face_box": [round(value, 1) for value in face.box], "face_score": round(face.score, 4),
            "person_box": person,
        }  # fmt: skip
        places = [[round(x, 1), round(y, 1)] for x, y in face.landmarks]
        described = (
            entry | {"faces": 1, "landmarks": places} | {key: row[key] for key in TOLD if row.get(key) is not None}
        )
        files = {
            "jpg": encode(picture, "JPEG", quality=95, subsampling=0),
            "mask.png": encode(mask, "PNG", compress_level=1),
            "json": json.dumps(described).encode(),
        }
        return Sample(entry | {"width": picture.width, "height": picture.height}, files)

    def noun(self, caption: str, told: str | None = None) -> str:
        """The person's noun in a caption, which names no child unless the recipe admits it.

        told: the noun, where somebody has said so.
        """
        if self.recipe.nouns == "adults" and find_noun(caption, CHILDREN + MORE_CHILDREN):
            raise BadSample(CHILD)
        found = told or find_noun(caption, self.subjects)
        if found is None or not has_word(caption, found):
            raise BadSample(NO_NOUN)
        return found

    def _person(self, picture: Image.Image, face: DetectedFace) -> list[float] | None:
        if not self.persons:
            return None
        around = [box for box in self.persons(picture) if share_inside(face.box, box) >= self.recipe.person.inside]
        if not around:
            raise BadSample(NO_PERSON)
        return [round(value, 1) for value in min(around, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))]

    def _mask(self, picture: Image.Image, small: Reduced, face: DetectedFace) -> Image.Image:
        """White is the face. Parsed from the whole picture; an oval needs no more than a small one."""
        pixels, scale = reduced(picture, DETECTION_MAX) if self.backend.parser else small
        mask = face_mask(pixels, face.mapped(scale), self.backend)
        if float(mask.max()) < 0.5:
            raise BadSample(EMPTY_MASK)
        return Image.fromarray((mask * 255).round().byte().numpy())


def only_face(picture: Image.Image, small: Reduced, backend: Backend, settings: Face) -> DetectedFace:
    """The one sure face of a picture, in its pixels. BadSample for none, two, a small or a turned one.

    Doubtful finds beside it do not count.
    """
    if settings.thorough:
        found, turns = find_with_turns(picture, backend)
    else:
        found, turns = find(picture, small, backend, settings.second), 0
    faces = sorted((face for face in found if face.sure), key=lambda face: -face.area)
    if not faces:
        raise BadSample(DOUBTFUL_FACE if found else NO_FACE)
    if turns:
        raise BadSample(NOT_UPRIGHT)
    if len(faces) > 1 and faces[1].area >= settings.second * faces[0].area:
        raise BadSample(TWO_FACES)
    if side_of(faces[0]) < settings.least:
        raise BadSample(SMALL_FACE)
    if abs(roll(faces[0])) > settings.turned:
        raise BadSample(NOT_UPRIGHT)
    return faces[0]


def find_with_turns(picture: Image.Image, backend: Backend) -> tuple[list[DetectedFace], int]:
    """As Face Reference looks at a photograph: small faces, tight crops, and every quarter turn until one is seen."""
    pixels, scale = reduced(picture, DETECTION_MAX)
    faces, turns = find_faces(backend.detector, pixels)
    return [face.mapped(1 / scale) for face in faces], turns


def find(picture: Image.Image, small: Reduced, backend: Backend, second: float) -> list[DetectedFace]:
    """Upright faces in pixels of the picture: at least the largest, and all whose area is the share `second` of it.

    The built-in detector's cost grows as (side of the picture / least side of a face)². So the first look is a coarse
    one. What it does not see, a face below a twelfth of the longer side, is no portrait. Where it has seen one face, a
    second look is for smaller ones alone, down to the size at which another would count.
    """
    if not isinstance(backend.detector, BuiltInDetector):
        pixels, scale = reduced(picture, DETECTION_MAX)
        return [face.mapped(1 / scale) for face in backend.detector.detect(pixels)]
    pixels, scale = small
    faces = BuiltInDetector(FIRST_FACE).detect(pixels)
    largest = max(faces, key=lambda face: face.area, default=None)
    counting = largest and [face for face in faces if face.area >= second * largest.area]
    least = side_of(largest) * math.sqrt(second) if largest else FIRST_FACE
    if least < FIRST_FACE and len(counting) == 1:
        enough = max(pixels.shape) * max(1.0, MIN_FACE / least)
        pixels, wider = reduced(picture, round(min(DETECTION_MAX, enough)))
        larger = wider / scale
        second_look = BuiltInDetector(max(MIN_FACE, least * larger), FIRST_FACE * larger)
        more = [face.mapped(1 / larger) for face in second_look.detect(pixels)]
        faces = faces + [face for face in more if all(share_inside(face.box, seen.box) < 0.5 for seen in faces)]
    return [face.mapped(1 / scale) for face in faces]


def reduced(picture: Image.Image, side: int) -> Reduced:
    """With the longer side at most `side` pixels."""
    scale = min(1.0, side / max(picture.size))
    size = tuple(max(1, round(value * scale)) for value in picture.size)
    small = picture if scale == 1.0 else picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return torch.from_numpy(np.array(small)).movedim(-1, 0).contiguous().float().div_(255), scale


def side_of(face: DetectedFace) -> float:
    return max(face.box[2] - face.box[0], face.box[3] - face.box[1])


def roll(face: DetectedFace) -> float:
    """Degrees by which the line from the eyes' middle to the mouth's leans from straight down."""
    left, right, _, *mouth = face.landmarks
    across = (mouth[0][0] + mouth[1][0] - left[0] - right[0]) / 2
    down = (mouth[0][1] + mouth[1][1] - left[1] - right[1]) / 2
    return math.degrees(math.atan2(across, down))


def share_inside(inner: tuple, outer: tuple) -> float:
    """Share of a box's area that lies in another."""
    width = min(inner[2], outer[2]) - max(inner[0], outer[0])
    height = min(inner[3], outer[3]) - max(inner[1], outer[1])
    area = (inner[2] - inner[0]) * (inner[3] - inner[1])
    return max(width, 0) * max(height, 0) / area if area > 0 else 0.0


def near_hash(picture: Image.Image) -> int:
    """64 bits that change little when a picture is encoded anew (pHash)."""
    import imagehash

    return int(str(imagehash.phash(picture.resize((64, 64), Image.Resampling.BOX, reducing_gap=2.0).convert("L"))), 16)


def face_mask(picture: torch.Tensor, face: DetectedFace, backend: Backend) -> torch.Tensor:
    """[H, W] in 0..1: parsed where facexlib's files are, else the oval of the landmarks, as in Face Reference."""
    height, width = picture.shape[-2:]
    x0, y0, x1, y1 = square_around(face.box, CROP)
    side = min(max(x1 - x0, MIN_SIDE), MAX_SIDE)  # of the crop
    scale = side / (x1 - x0)
    inside = face.mapped(scale, -x0 * scale, -y0 * scale)
    if backend.parser is None:
        mask = face_oval(inside, side)
    else:
        mask = near_face(backend.parser.parse(crop_square(picture, (x0, y0, x1, y1))), inside)
    return paste(mask, (x0, y0, x1, y1), height, width)
