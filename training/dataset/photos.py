"""Photographs of a folder: into shards of their own (`run.py train shards`), or as the metadata of a data set.

They become samples by the same code as pictures of the web (look.py), but are looked at longer: there are few of them.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ...models.faces.file import open_picture
from ...sampling.phrases import marked
from ...sampling.words import SUBJECTS
from ..data.folder import FOREIGN, NO_CAPTION, LeftOut, Photo, list_photos
from ..data.index import BROKEN_PICTURE, NO_NOUN, BadSample
from ..files import whole, write_whole
from . import reasons, recipe
from .look import Look
from .picture import encode

log = logging.getLogger(__name__)

FOREIGN_FORMAT = "a kind of file that cannot be read here: save it as JPEG or PNG"
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


def photo_recipe(options: Options) -> recipe.Recipe:
    """How photographs are judged: the shipped recipe, and facexlib's files."""
    return recipe.read("photographs", {"face.facexlib": tuple(map(str, options.facexlib))})


def make_shards(options: Options) -> Made:
    """Write shards of the photographs that no shard holds yet; those that are there stay as they are.

    So an interrupted command goes on, and photographs that came later get shards of their own.
    """
    left = LeftOut()
    photos = list_photos(options.photos, options.people, left)
    before, number = made_before(options.out)
    new = [photo for photo in photos if photo.name not in before]
    look = Look(photo_recipe(options), options.subjects)
    made = kept = 0
    with ThreadPoolExecutor(max(1, options.workers)) as pool:  # torch and Pillow work outside Python's lock
        for start in range(0, len(new), options.size):
            part = new[start : start + options.size]
            path = options.out / f"train-{number + made:06d}.tar"
            names = write_shard(path, part, _bounded_map(pool, part, options, look), left)
            kept, made = kept + len(names), made + bool(names)
    if left.names:
        left.write(options.out / LEFT_OUT)
    return Made(made, kept, len(photos) - len(new), left)


def _bounded_map(pool: ThreadPoolExecutor, photos: Sequence[Photo], options: Options, look: Look) -> Iterator:
    """Samples in order, no more than a few dozen of them in memory."""
    for start in range(0, len(photos), 32):
        yield from pool.map(lambda photo: attempt(photo, options, look), photos[start : start + 32])


def attempt(photo: Photo, options: Options, look: Look) -> dict[str, bytes] | str:
    """A sample's files by extension, or why there is none."""
    try:
        return sample_of(photo, options, look)
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


def sample_of(photo: Photo, options: Options, look: Look) -> dict[str, bytes]:
    """The files of one photograph's sample. BadSample for one that cannot be used."""
    if photo.problem:
        raise BadSample(photo.problem)
    if photo.caption is None:
        raise BadSample(NO_CAPTION)
    if not options.faces:
        return _any_picture(photo, options)
    row = {"text": photo.caption, "identity": photo.identity or None}
    try:
        subject = look.noun(photo.caption, photo.subject)
    except BadSample as bad:
        raise BadSample(NO_NOUN if str(bad) == reasons.NO_NOUN else str(bad)) from None  # with what to do about it
    return look.sample(row, open_photo(photo.path, options.max_side), subject).files


def _any_picture(photo: Photo, options: Options) -> dict[str, bytes]:
    """A picture and its caption; of [[words]] in double brackets the target."""
    caption, target = marked(photo.caption)
    described = {"caption": caption} | ({"target": target} if target else {})
    picture = open_photo(photo.path, options.max_side)
    return {"jpg": encode(picture, "JPEG", quality=95, subsampling=0), "json": json.dumps(described).encode()}


def open_photo(path: Path, max_side: int) -> Image.Image:
    """RGB, upright as its EXIF says, bounded in size. What else EXIF holds goes no further."""
    try:
        picture, note = open_picture(path)
    except Exception:  # whatever Pillow's readers come upon
        raise BadSample(FOREIGN_FORMAT if path.suffix.lower() in FOREIGN else BROKEN_PICTURE) from None
    if note:
        log.warning("%s: %s.", path, note)
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return picture
