"""Which samples the shards hold and where, so that any of them can be read by its number.

A shard is a webdataset tar file. Files of one name, up to the first dot, are one sample:

    <key>.jpg              the picture (or .jpeg, .png where masks are `mask.png`, .webp)
    <key>.json             {"caption": "a smiling woman in a forest", "subject": "woman", "face_box": [x0, y0, x1, y1]}
                           and, where wanted, "occurrence" (0: the first "woman"), "identity", "faces", "reference_box",
                           "landmarks" (five places, for IC-Portrait)
    <key>.mask.png         white is the face, at any size; or <key>.png of labels, some of which are the face
    <key>.reference.jpg    optional: another picture of the same person
    <key>.place.npy        optional: which point of a face each place shows, for IC-Portrait's matching net
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from dataclasses import asdict, dataclass, replace
from glob import glob
from pathlib import Path

from ...sampling.words import has_word
from ..files import digest, write_whole

PICTURES = ("jpg", "jpeg", "webp")
TOKENS = 77
"""Columns that are kept of a caption: one chunk of CLIP's."""

NO_PICTURE = "no picture"
NO_CAPTION = "no caption"
NO_DESCRIPTION = "no readable description (json)"
NO_NOUN = "the caption lacks the noun: name it by train shards --subject WORD, or as subject in captions.jsonl"
NO_MASK = "no face mask"
NO_BOX = "no face box"
TWO_FACES = "two faces"
BROKEN_PICTURE = "the picture cannot be read"
BROKEN_MASK = "the mask cannot be read"
EMPTY_MASK = "the face mask is empty"
SMALL_PICTURE = "the picture is too small"
LATE_NOUN = "the noun comes too late in the caption"
BROKEN_SHARD = "the shard cannot be read"
CHANGED_SHARD = "the shard has changed since the run began"
BAD_OCCURRENCE = "the occurrence of the noun is no whole number from 0"

PASSING = (BROKEN_SHARD, CHANGED_SHARD)
"""Reasons that another day may not have, so they are never kept on disk."""
FORMAT = 2
"""Of the index files; others are made anew."""


class BadSample(Exception):
    """A sample that is skipped. Its only argument is one of the reasons above."""


@dataclass(frozen=True)
class Entry:
    """One sample. members: extension to (offset, size) in the shard's file. width, height: of the picture, pixels.

    identity: what its JSON says, as text, or "". problem: why it is of no use, or "". stamp: size and time of the shard
    when it was indexed.
    """

    shard: str
    key: str
    members: dict[str, tuple[int, int]]
    width: int = 0
    height: int = 0
    identity: str = ""
    problem: str = ""
    stamp: tuple[int, int] = (0, 0)

    def read(self, extension: str) -> bytes:
        """A member's bytes. BadSample if the shard has gone, or is not the one that was indexed."""
        offset, size = self.members[extension]
        try:
            with open(self.shard, "rb") as file:
                if stamp_of(os.fstat(file.fileno())) != self.stamp:
                    raise BadSample(CHANGED_SHARD)
                file.seek(offset)
                content = file.read(size)
        except OSError:
            raise BadSample(BROKEN_SHARD) from None
        if len(content) < size:
            raise BadSample(BROKEN_SHARD)
        return content

    @property
    def picture(self) -> str:
        """The picture's extension."""
        return next(name for name in (*PICTURES, "png") if name in self.members)

    def description(self) -> dict:
        """What its JSON says. BadSample if that is no object."""
        if "json" not in self.members:
            raise BadSample(NO_DESCRIPTION)
        try:
            described = json.loads(self.read("json"))
        except (ValueError, RecursionError):
            raise BadSample(NO_DESCRIPTION) from None
        if not isinstance(described, dict):
            raise BadSample(NO_DESCRIPTION)
        return described


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def expand(patterns: tuple[str, ...]) -> list[str]:
    """Shards of folders (`train-*.tar`, else all), globs, brace patterns and URLs, in a fixed order. ValueError if a
    pattern matches nothing."""
    from webdataset.shardlists import expand_urls

    found: list[str] = []
    for pattern in patterns:
        if is_remote(pattern):
            _check_scheme(pattern)
            found += expand_urls(pattern)
            continue
        folder = Path(pattern).expanduser()
        if folder.is_dir():
            matches = sorted(folder.glob("train-*.tar")) or sorted(folder.glob("*.tar"))
        else:
            names = expand_urls(pattern) if "{" in pattern else [str(folder)]  # a backslash is an escape to braces
            matches = [path for name in names for path in sorted(glob(name))]
        if not matches:
            raise ValueError(f"There are no shards at {pattern}: make some by `python run.py train shards`.")
        found += map(str, matches)
    return list(dict.fromkeys(found))


def is_remote(shard: str) -> bool:
    return "://" in shard or shard.startswith("pipe:")


def _check_scheme(url: str) -> None:
    from webdataset.gopen import gopen_schemes

    scheme = url.partition(":")[0]
    if scheme not in gopen_schemes or scheme.startswith("_"):
        raise ValueError(
            f"Shards cannot be read from {scheme}://, but from http, https, gs and the output of a command: write for "
            'example "pipe:aws s3 cp s3://bucket/train-{000..099}.tar -".'
        )


def load(shard: str, cache: Path, faces: bool = True) -> list[Entry]:
    """A shard's entries, from the index in `cache` where it is newer; remote shards are downloaded first.

    faces: whether a sample needs a noun, a face box and a mask; else a picture and a caption are enough. A shard that
    cannot be read is one entry with that problem.
    """
    try:
        path = Path(download(shard, cache)) if is_remote(shard) else Path(shard)
        stamp = stamp_of(path.stat())
    except OSError:
        return [Entry(shard, "", {}, problem=BROKEN_SHARD)]
    store = cache / "index" / f"{digest(str(path), *([] if faces else ['pictures']))}.json"
    if store.is_file():
        stored = json.loads(store.read_text(encoding="utf-8"))
        if stored.get("format") == FORMAT and tuple(stored["stamp"]) == stamp:
            return [Entry(**(each | {"stamp": stamp})) for each in stored["entries"]]
    entries = scan(path, stamp, faces)
    if not any(entry.problem in PASSING for entry in entries):
        content = {"format": FORMAT, "stamp": stamp, "entries": [asdict(each) for each in entries]}
        write_whole(store, json.dumps(content).encode())
    return entries


def download(url: str, cache: Path) -> str:
    """The local copy of a remote shard; anything that webdataset opens (https, gs, pipe:). OSError if it fails."""
    from webdataset.gopen import gopen

    path = cache / "downloads" / f"{digest(url)}-{re.sub(r'[^A-Za-z0-9._-]', '_', url.rsplit('/', 1)[-1])[-80:]}"
    if not path.is_file():
        with gopen(url, "rb") as stream:
            content = stream.read()
        if not content:
            raise OSError(f"{url} is empty")
        write_whole(path, content)
    return str(path)


def scan(path: Path, stamp: tuple[int, int], faces: bool = True) -> list[Entry]:
    """Every sample of a local shard, checked as far as its headers go."""
    grouped: dict[str, dict[str, tuple[int, int]]] = {}
    broken = False
    try:
        with tarfile.open(path, "r:") as archive:  # not compressed: members are read where they lie
            for member in archive:
                if member.isfile():
                    key, extension = split_name(member.name)
                    grouped.setdefault(key, {})[extension] = (member.offset_data, member.size)
    except (OSError, EOFError, ValueError, tarfile.TarError):
        broken = True
    entries = [_checked(Entry(str(path), key, members, stamp=stamp), faces) for key, members in grouped.items()]
    return entries + [Entry(str(path), "", {}, problem=BROKEN_SHARD)] * broken


def split_name(name: str) -> tuple[str, str]:
    """webdataset's key and extension: everything up to the first dot of the file's name, and what follows."""
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return folder + slash + key, extension.lower()


def _checked(entry: Entry, faces: bool) -> Entry:
    try:
        width, height, identity = _inspect(entry, faces)
    except BadSample as bad:
        return replace(entry, problem=str(bad))
    return replace(entry, width=width, height=height, identity=identity)


def _inspect(entry: Entry, faces: bool) -> tuple[int, int, str]:
    from PIL import Image

    members = entry.members
    if not any(name in members for name in PICTURES) and not (
        "png" in members and (not faces or "mask.png" in members)
    ):
        raise BadSample(NO_PICTURE)
    described = entry.description()
    if faces:
        _check_words(described)
        if "mask.png" not in members and "png" not in members:
            raise BadSample(NO_MASK)
    elif not _is_text(described.get("caption")) or not described["caption"].strip():
        raise BadSample(NO_CAPTION)
    try:
        width, height = Image.open(io.BytesIO(entry.read(entry.picture))).size
    except BadSample:
        raise
    except Exception:  # whatever Pillow's readers come upon
        raise BadSample(BROKEN_PICTURE) from None
    if faces and not is_box(described.get("face_box"), width, height):
        raise BadSample(NO_BOX)
    return width, height, str(described.get("identity", ""))


def _check_words(described: dict) -> None:
    """BadSample where the caption does not tell which one person it is about."""
    caption, subject = described.get("caption"), described.get("subject")
    if not _is_text(caption) or not _is_text(subject) or not has_word(caption, subject):
        raise BadSample(NO_NOUN)
    occurrence = described.get("occurrence", 0)
    if type(occurrence) is not int or not 0 <= occurrence < TOKENS:
        raise BadSample(BAD_OCCURRENCE)
    if described.get("faces", 1) != 1:
        raise BadSample(TWO_FACES)


def _is_text(value: object) -> bool:
    """JSON may hold half a surrogate pair, which no tokenizer takes."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def is_box(box: object, width: int, height: int) -> bool:
    """Four numbers that span an area which touches the picture and lies no farther outside than it is large."""
    if not isinstance(box, list) or len(box) != 4 or any(type(value) not in (int, float) for value in box):
        return False
    return all(
        -side <= low < high <= 2 * side and low < side and high > 0
        for low, high, side in ((box[0], box[2], width), (box[1], box[3], height))
    )
