"""Shards from photographs: one face is found, boxed and masked; what cannot be used is counted by reason."""

from __future__ import annotations

import argparse
import io
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...models.faces.crop import crop_square, paste, square_around
from ...models.faces.detector import AUTO, Backend, choose_backend, find_faces
from ...models.faces.face import DetectedFace
from ...models.faces.file import open_picture
from ...models.faces.mask import face_oval, near_face
from ...sampling.phrases import marked
from ...sampling.words import SUBJECTS, find_noun, has_word
from ..files import whole, write_whole
from .folder import FOREIGN, NO_CAPTION, LeftOut, Photo, list_photos
from .index import BROKEN_PICTURE, NO_NOUN, TWO_FACES, BadSample

log = logging.getLogger(__name__)

FOREIGN_FORMAT = "a kind of file that cannot be read here: save it as JPEG or PNG"
NO_FACE = "no face found"
DOUBTFUL_FACE = "no face found for certain, only a doubtful one"
NOT_UPRIGHT = "the face is not upright"
SMALL_FACE = "the face is too small"

LEAST_FACE = 48
"""Pixels of the larger side of a face's box."""
SECOND_FACE = 0.1
"""Another face counts when its box has this share of the largest one's area: smaller ones are in the background."""
CROP = 2.0
LEFT_OUT = "left-out.tsv"
"""Beside the shards: every photograph and caption that is not in them, and why."""


@dataclass(frozen=True)
class Options:
    """people: the photograph's folder says who it is. size: photographs a shard. max_side: pixels. faces: whether a
    noun and one face are looked for; else any picture with a caption will do."""

    photos: Path
    out: Path
    subjects: tuple[str, ...] = SUBJECTS
    people: bool = False
    size: int = 1000
    max_side: int = 2048
    facexlib: tuple[Path, ...] = ()
    workers: int = 4
    faces: bool = True


def options_of(given: argparse.Namespace) -> Options:
    subjects = tuple(given.subject or SUBJECTS)
    return Options(
        given.photos, given.out, subjects, given.people, given.size, given.max_side, tuple(given.facexlib),
        given.workers, not given.any_picture,
    )  # fmt: skip


def made_before(out: Path) -> tuple[set[str], int]:
    """Photographs in the shards that are there, and the next shard's number. ValueError for shards of another make."""
    names: set[str] = set()
    shards = sorted(out.glob("train-*.tar"))
    for shard in shards:
        try:
            names.update(json.loads(shard.with_suffix(".photos.json").read_text(encoding="utf-8")))
        except (OSError, ValueError):
            raise ValueError(
                f"{shard} does not say which photographs are in it ({shard.stem}.photos.json): choose another --out."
            ) from None
    return names, 1 + max((int(shard.stem[6:]) for shard in shards if shard.stem[6:].isdigit()), default=-1)


@dataclass(frozen=True)
class Made:
    """shards: how many are new. kept: photographs in them. before: photographs that older shards hold already."""

    shards: int
    kept: int
    before: int
    left: LeftOut

    @property
    def reasons(self) -> Counter[str]:
        return self.left.reasons


def make_shards(options: Options) -> Made:
    """Write shards of the photographs that no shard holds yet; those that are there stay as they are.

    So an interrupted command goes on, and photographs that came later get shards of their own.
    """
    left = LeftOut()
    photos = list_photos(options.photos, options.people, left)
    before, number = made_before(options.out)
    new = [photo for photo in photos if photo.name not in before]
    backend = choose_backend(AUTO, options.facexlib) if options.faces else None
    made = kept = 0
    with ThreadPoolExecutor(max(1, options.workers)) as pool:  # torch and Pillow work outside Python's lock
        for start in range(0, len(new), options.size):
            part = new[start : start + options.size]
            path = options.out / f"train-{number + made:06d}.tar"
            names = write_shard(path, part, _bounded_map(pool, part, options, backend), left)
            kept, made = kept + len(names), made + bool(names)
    if left.names:
        left.write(options.out / LEFT_OUT)
    return Made(made, kept, len(photos) - len(new), left)


def _bounded_map(
    pool: ThreadPoolExecutor, photos: Sequence[Photo], options: Options, backend: Backend | None
) -> Iterator:
    """Samples in order, no more than a few dozen of them in memory."""
    for start in range(0, len(photos), 32):
        yield from pool.map(lambda photo: attempt(photo, options, backend), photos[start : start + 32])


def attempt(photo: Photo, options: Options, backend: Backend | None) -> dict | str:
    """A sample's files by extension, or why there is none."""
    try:
        return sample_of(photo, options, backend)
    except BadSample as bad:
        return str(bad)


def write_shard(path: Path, photos: Sequence[Photo], samples: Iterable[dict | str], left: LeftOut) -> list[str]:
    """A shard as a whole or not at all, and beside it the names of the photographs in it, which are returned."""
    import webdataset

    names: list[str] = []
    with whole(path) as part:
        with webdataset.TarWriter(str(part)) as tar:
            for photo, sample in zip(photos, samples, strict=True):
                if isinstance(sample, str):
                    left.add(sample, photo.name)
                    continue
                tar.write({"__key__": f"{path.stem[6:]}{len(names):06d}"} | sample)
                names.append(photo.name)
        if names:  # first: no shard without it
            write_whole(path.with_suffix(".photos.json"), json.dumps(names, indent=0).encode())
        else:
            part.unlink()
    return names


def sample_of(photo: Photo, options: Options, backend: Backend | None) -> dict:
    """The files of one photograph's sample. BadSample for one that cannot be used."""
    if photo.problem:
        raise BadSample(photo.problem)
    if photo.caption is None:
        raise BadSample(NO_CAPTION)
    if not options.faces:
        return _any_picture(photo, options)
    subject = photo.subject or find_noun(photo.caption, options.subjects)
    if subject is None or not has_word(photo.caption, subject):
        raise BadSample(NO_NOUN)
    pixels = open_photo(photo.path, options.max_side)
    face = only_face(pixels, backend)
    mask = face_mask(pixels, face, backend)
    described = {
        "caption": photo.caption, "subject": subject, "faces": 1, "face_box": [round(value, 1) for value in face.box],
    } | ({"identity": photo.identity} if photo.identity else {})  # fmt: skip
    return {
        "jpg": _jpeg(pixels),
        "mask.png": _encoded((mask * 255).round().byte().numpy(), "PNG"),
        "json": json.dumps(described).encode(),
    }


def _any_picture(photo: Photo, options: Options) -> dict:
    """A picture and its caption; of [[words]] in double brackets the target."""
    caption, target = marked(photo.caption)
    described = {"caption": caption} | ({"target": target} if target else {})
    return {"jpg": _jpeg(open_photo(photo.path, options.max_side)), "json": json.dumps(described).encode()}


def open_photo(path: Path, max_side: int) -> torch.Tensor:
    """[3, H, W] in 0..1, upright as its EXIF says, bounded in size. What else EXIF holds goes no further."""
    try:
        picture, note = open_picture(path)
    except Exception:  # whatever Pillow's readers come upon
        raise BadSample(FOREIGN_FORMAT if path.suffix.lower() in FOREIGN else BROKEN_PICTURE) from None
    if note:
        log.warning("%s: %s.", path, note)
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).movedim(-1, 0).float() / 255


def only_face(picture: torch.Tensor, backend: Backend) -> DetectedFace:
    """The one sure face of a photograph; doubtful finds beside it do not count."""
    found, turns = find_faces(backend.detector, picture)
    faces = [face for face in found if face.sure]
    if not faces:
        raise BadSample(DOUBTFUL_FACE if found else NO_FACE)
    if turns:
        raise BadSample(NOT_UPRIGHT)
    faces = sorted(faces, key=lambda face: -face.area)
    if len(faces) > 1 and faces[1].area >= SECOND_FACE * faces[0].area:
        raise BadSample(TWO_FACES)
    x0, y0, x1, y1 = faces[0].box
    if max(x1 - x0, y1 - y0) < LEAST_FACE:
        raise BadSample(SMALL_FACE)
    return faces[0]


def face_mask(picture: torch.Tensor, face: DetectedFace, backend: Backend) -> torch.Tensor:
    """[H, W] in 0..1: parsed where facexlib's files are, else the oval of the landmarks, as in Face Reference."""
    height, width = picture.shape[-2:]
    x0, y0, x1, y1 = square_around(face.box, CROP)
    crop = crop_square(picture, (x0, y0, x1, y1))
    side = crop.shape[-1]
    scale = side / (x1 - x0)
    inside = face.mapped(scale, -x0 * scale, -y0 * scale)
    if backend.parser is None:
        mask = face_oval(inside, side)
    else:
        mask = near_face(backend.parser.parse(crop), inside)
    return paste(mask, (x0, y0, x1, y1), height, width)


def _jpeg(pixels: torch.Tensor) -> bytes:
    picture = (pixels * 255).round().byte().movedim(0, -1).numpy()
    return _encoded(picture, "JPEG", quality=95, subsampling=0)


def _encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()
