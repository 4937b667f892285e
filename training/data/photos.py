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
import torch.nn.functional as F

from ...models.faces.crop import crop_square, square_around
from ...models.faces.detector import AUTO, Backend, DetectedFace, choose_backend, find_faces
from ...models.faces.mask import face_oval, near_face
from ...sampling.words import SUBJECTS, find_noun, has_word
from ..files import whole, write_whole
from .index import BROKEN_PICTURE, NO_NOUN, TWO_FACES, BadSample

log = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
NO_CAPTION = "no caption"
NOT_TEXT = "the caption is not UTF-8 text"
BAD_LINE = "a line of captions.jsonl that cannot be used"
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
    """name: its path in the folder. caption, subject: as given, or None. problem: why it is of no use, or ""."""

    path: Path
    name: str
    caption: str | None
    subject: str | None
    identity: str
    problem: str = ""


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


def list_photos(options: Options, reasons: Counter[str]) -> list[Photo]:
    """Every photograph under the folder, in order, with its caption. ValueError if there is none."""
    root = options.photos
    told = read_table(root / "captions.jsonl", reasons)
    photos = []
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()):
        name, text, problem = path.relative_to(root).as_posix(), path.with_suffix(".txt"), ""
        caption, subject = told.get(name, (None, None))
        if not caption and text.is_file():
            try:
                caption = text.read_bytes().decode("utf-8-sig").strip()
            except UnicodeDecodeError:
                problem = NOT_TEXT
                log.warning("%s is not UTF-8 text: save it as UTF-8.", text)
        identity = path.parent.relative_to(root).as_posix() if options.people and path.parent != root else ""
        photos.append(Photo(path, name, caption or None, subject, identity, problem))
    if not photos:
        raise ValueError(f"There are no photographs in {root}: give a folder with jpg, png or webp files.")
    return photos


def read_table(table: Path, reasons: Counter[str]) -> dict[str, tuple[str, str | None]]:
    """Captions and subjects of captions.jsonl by file, if there is one. Lines of no use are named and counted."""
    told: dict[str, tuple[str, str | None]] = {}
    for number, line in enumerate(table.read_bytes().split(b"\n") if table.is_file() else [], 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line.decode("utf-8-sig"))
            file, caption, subject = entry["file"], entry["caption"], entry.get("subject")
            if not all(isinstance(each, str) for each in (file, caption, subject or "")):
                raise TypeError
            told[file] = (caption, subject)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            reasons[BAD_LINE] += 1
            log.warning('%s, line %d is not {"file": …, "caption": …} in UTF-8.', table, number)
    return told


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
    reasons: Counter[str]


def make_shards(options: Options) -> Made:
    """Write shards of the photographs that no shard holds yet; those that are there stay as they are.

    So an interrupted command goes on, and photographs that came later get shards of their own.
    """
    reasons: Counter[str] = Counter()
    photos = list_photos(options, reasons)
    before, number = made_before(options.out)
    new = [photo for photo in photos if photo.name not in before]
    backend = choose_backend(AUTO, options.facexlib)
    made = kept = 0
    with ThreadPoolExecutor(max(1, options.workers)) as pool:  # torch and Pillow work outside Python's lock
        for start in range(0, len(new), options.size):
            part = new[start : start + options.size]
            path = options.out / f"train-{number + made:06d}.tar"
            names = write_shard(path, part, _bounded_map(pool, part, options, backend), reasons)
            kept, made = kept + len(names), made + bool(names)
    return Made(made, kept, len(photos) - len(new), reasons)


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


def write_shard(path: Path, photos: Sequence[Photo], samples: Iterable[dict | str], reasons: Counter[str]) -> list[str]:
    """A shard as a whole or not at all, and beside it the names of the photographs in it, which are returned."""
    import webdataset

    names: list[str] = []
    with whole(path) as part:
        with webdataset.TarWriter(str(part)) as tar:
            for photo, sample in zip(photos, samples, strict=True):
                if isinstance(sample, str):
                    reasons[sample] += 1
                    continue
                tar.write({"__key__": f"{path.stem[6:]}{len(names):06d}"} | sample)
                names.append(photo.name)
        if names:  # first: no shard without it
            write_whole(path.with_suffix(".photos.json"), json.dumps(names, indent=0).encode())
        else:
            part.unlink()
    return names


def sample_of(photo: Photo, options: Options, backend: Backend) -> dict:
    """The files of one photograph's sample. BadSample for one that cannot be used."""
    if photo.problem:
        raise BadSample(photo.problem)
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


def open_photo(path: Path, max_side: int) -> torch.Tensor:
    """[3, H, W] in 0..1, upright as its EXIF says, bounded in size. What else EXIF holds goes no further."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGB")
    except Exception:  # whatever Pillow's readers come upon
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
