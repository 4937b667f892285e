"""Shards from photographs: one face is found, boxed and masked; what cannot be used is counted by reason."""

from __future__ import annotations

import argparse
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ...models.face.crop import crop_square, square_around
from ...models.face.detector import AUTO, Backend, DetectedFace, choose_backend, find_faces
from ...models.face.mask import face_oval, near_face
from .index import BROKEN_PICTURE, NO_NOUN, TWO_FACES, BadSample, has_word

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
SUBJECTS = (
    "woman", "man", "girl", "boy", "lady", "gentleman", "guy", "person", "bride", "groom", "actress", "actor", "model",
    "child", "kid", "teenager", "grandmother", "grandfather", "mother", "father", "face",
)  # fmt: skip
"""Nouns that are looked for in a caption; the one that comes first in it is the subject."""

NO_CAPTION = "no caption"
NO_FACE = "no face found"
NOT_UPRIGHT = "the face is not upright"
SMALL_FACE = "the face is too small"

LEAST_FACE = 48
"""Pixels of the larger side of a face's box."""
SECOND_FACE = 0.1
"""Another face counts when its box has this share of the largest one's area: smaller ones are in the background."""
CROP = 2.0


@dataclass(frozen=True)
class Photo:
    """caption, subject: as given, or None."""

    path: Path
    caption: str | None
    subject: str | None
    identity: str


@dataclass(frozen=True)
class Options:
    """people: the photograph's folder says who it is. size: photographs a shard. max_side: pixels."""

    photos: Path
    out: Path
    subjects: tuple[str, ...] = SUBJECTS
    people: bool = False
    size: int = 1000
    max_side: int = 2048
    facexlib: tuple[Path, ...] = ()
    workers: int = 4


def options_of(given: argparse.Namespace) -> Options:
    subjects = tuple(given.subject or SUBJECTS)
    facexlib = tuple(given.facexlib)
    return Options(given.photos, given.out, subjects, given.people, given.size, given.max_side, facexlib, given.workers)


def list_photos(options: Options) -> list[Photo]:
    """Every photograph under the folder, in order, with its caption. ValueError if there is none."""
    root = options.photos
    told = {}
    if (table := root / "captions.jsonl").is_file():
        for line in table.read_text(encoding="utf-8").splitlines():
            if line.strip():
                entry = json.loads(line)
                told[entry["file"]] = entry
    photos = []
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()):
        entry = told.get(path.relative_to(root).as_posix(), {})
        text = path.with_suffix(".txt")
        caption = entry.get("caption") or (text.read_text(encoding="utf-8").strip() if text.is_file() else None)
        identity = path.parent.relative_to(root).as_posix() if options.people and path.parent != root else ""
        photos.append(Photo(path, caption or None, entry.get("subject"), identity))
    if not photos:
        raise ValueError(f"There are no photographs in {root}: give a folder with jpg, png or webp files.")
    return photos


def make_shards(options: Options) -> tuple[int, int, Counter[str]]:
    """Write the shards that are not there yet: how many, photographs in them, and what was skipped by reason."""
    photos = list_photos(options)
    backend = choose_backend(AUTO, options.facexlib)
    reasons: Counter[str] = Counter()
    made = kept = 0
    with ThreadPoolExecutor(max(1, options.workers)) as pool:  # torch and Pillow work outside Python's lock
        for number, start in enumerate(range(0, len(photos), options.size)):
            path = options.out / f"train-{number:06d}.tar"
            if path.exists():
                continue
            part = photos[start : start + options.size]
            kept += write_shard(path, _bounded_map(pool, part, options, backend), start, reasons)
            made += 1
    return made, kept, reasons


def _bounded_map(pool: ThreadPoolExecutor, photos: Sequence[Photo], options: Options, backend: Backend) -> Iterator:
    """Samples in order, no more than a few dozen of them in memory."""
    for start in range(0, len(photos), 32):
        yield from pool.map(lambda photo: attempt(photo, options, backend), photos[start : start + 32])


def attempt(photo: Photo, options: Options, backend: Backend) -> dict | str:
    """A sample's files by extension, or why there is none."""
    try:
        return sample_of(photo, options, backend)
    except BadSample as bad:
        return str(bad)


def write_shard(path: Path, samples: Iterable[dict | str], first: int, reasons: Counter[str]) -> int:
    """A shard as a whole or not at all; returns how many samples it has."""
    import os

    import webdataset

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    kept = 0
    with webdataset.TarWriter(str(part)) as tar:
        for number, sample in enumerate(samples, first):
            if isinstance(sample, str):
                reasons[sample] += 1
                continue
            tar.write({"__key__": f"{number:07d}"} | sample)
            kept += 1
    os.replace(part, path)
    return kept


def sample_of(photo: Photo, options: Options, backend: Backend) -> dict:
    """The files of one photograph's sample. BadSample for one that cannot be used."""
    if photo.caption is None:
        raise BadSample(NO_CAPTION)
    subject = photo.subject or find_noun(photo.caption, options.subjects)
    if subject is None or not has_word(photo.caption, subject):
        raise BadSample(NO_NOUN)
    pixels = open_photo(photo.path, options.max_side)
    face = only_face(pixels, backend)
    mask = face_mask(pixels, face, backend)
    described = {
        "caption": photo.caption, "subject": subject, "faces": 1, "face_box": [round(value, 1) for value in face.box],
    } | ({"identity": photo.identity} if photo.identity else {})  # fmt: skip
    picture = (pixels * 255).round().byte().movedim(0, -1).numpy()
    return {
        "jpg": _encoded(picture, "JPEG", quality=95, subsampling=0),
        "mask.png": _encoded((mask * 255).round().byte().numpy(), "PNG"),
        "json": json.dumps(described).encode(),
    }


def find_noun(caption: str, subjects: Sequence[str]) -> str | None:
    """The first of the subjects' words in a caption, as it is written there."""
    found = re.search(rf"\b({'|'.join(map(re.escape, subjects))})\b", caption, re.IGNORECASE)
    return found and found.group(0)


def open_photo(path: Path, max_side: int) -> torch.Tensor:
    """[3, H, W] in 0..1, upright as its EXIF says, bounded in size. What else EXIF holds goes no further."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise BadSample(BROKEN_PICTURE) from None
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).movedim(-1, 0).float() / 255


def only_face(picture: torch.Tensor, backend: Backend) -> DetectedFace:
    """The one face of a photograph."""
    faces, turns = find_faces(backend.detector, picture)
    if not faces:
        raise BadSample(NO_FACE)
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
    mask = F.interpolate(mask[None, None].float(), (y1 - y0, x1 - x0), mode="bilinear", antialias=True)[0, 0]
    whole = torch.zeros(height, width)
    top, left, bottom, right = max(y0, 0), max(x0, 0), min(y1, height), min(x1, width)
    whole[top:bottom, left:right] = mask[top - y0 : bottom - y0, left - x0 : right - x0].clamp(0, 1)
    return whole


def _encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()
