"""Which samples the shards hold and where, so that any of them can be read by its number.

A shard is a webdataset tar file. Files of one name, up to the first dot, are one sample:

    <key>.jpg              the picture (or .jpeg, .png where masks are `mask.png`, .webp)
    <key>.json             {"caption": "a smiling woman in a forest", "subject": "woman", "face_box": [x0, y0, x1, y1]}
                           and, where wanted, "occurrence" (0: the first "woman"), "identity", "faces", "reference_box"
    <key>.mask.png         white is the face, at any size; or <key>.png of labels, some of which are the face
    <key>.reference.jpg    optional: another picture of the same person
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from dataclasses import asdict, dataclass
from glob import glob
from pathlib import Path

PICTURES = ("jpg", "jpeg", "webp")

NO_PICTURE = "no picture"
NO_DESCRIPTION = "no readable description (json)"
NO_NOUN = "the caption lacks the noun"
NO_MASK = "no face mask"
NO_BOX = "no face box"
TWO_FACES = "two faces"
BROKEN_PICTURE = "the picture cannot be read"
BROKEN_MASK = "the mask cannot be read"
EMPTY_MASK = "the face mask is empty"
SMALL_PICTURE = "the picture is too small"
LATE_NOUN = "the noun comes too late in the caption"
BROKEN_SHARD = "the shard cannot be read"


class BadSample(Exception):
    """A sample that is skipped. Its only argument is one of the reasons above."""


@dataclass(frozen=True)
class Entry:
    """One sample. members: extension to (offset, size) in the shard's file. width, height: of the picture, pixels.

    identity: what its JSON says, as text, or "". problem: why it is of no use, or "".
    """

    shard: str
    key: str
    members: dict[str, tuple[int, int]]
    width: int = 0
    height: int = 0
    identity: str = ""
    problem: str = ""

    def read(self, extension: str) -> bytes:
        """A member's bytes. BadSample if the shard has gone or become shorter."""
        offset, size = self.members[extension]
        try:
            with open(self.shard, "rb") as file:
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
        return json.loads(self.read("json"))


def expand(patterns: tuple[str, ...]) -> list[str]:
    """Shards of folders (`train-*.tar`, else all), globs, brace patterns and URLs, in a fixed order. ValueError if a
    pattern matches nothing."""
    from webdataset.shardlists import expand_urls

    found: list[str] = []
    for pattern in patterns:
        if is_remote(pattern):
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


def load(shard: str, cache: Path) -> list[Entry]:
    """A shard's entries, from the index in `cache` where it is newer; remote shards are downloaded first.

    A shard that cannot be read is one entry with that problem.
    """
    try:
        path = Path(download(shard, cache)) if is_remote(shard) else Path(shard)
        stamp = [path.stat().st_size, path.stat().st_mtime_ns]
    except OSError:
        return [Entry(shard, "", {}, problem=BROKEN_SHARD)]
    store = cache / "index" / f"{digest(str(path))}.json"
    if store.is_file():
        stored = json.loads(store.read_text(encoding="utf-8"))
        if stored["stamp"] == stamp:
            return [Entry(**each) for each in stored["entries"]]
    entries = scan(path)
    write_whole(store, json.dumps({"stamp": stamp, "entries": [asdict(each) for each in entries]}).encode())
    return entries


def download(url: str, cache: Path) -> str:
    """The local copy of a remote shard; anything that webdataset opens (https, s3, gs, pipe:). OSError if it fails."""
    from webdataset.gopen import gopen

    path = cache / "downloads" / f"{digest(url)}-{re.sub(r'[^A-Za-z0-9._-]', '_', url.rsplit('/', 1)[-1])[-80:]}"
    if not path.is_file():
        with gopen(url, "rb") as stream:
            content = stream.read()
        if not content:
            raise OSError(f"{url} is empty")
        write_whole(path, content)
    return str(path)


def scan(path: Path) -> list[Entry]:
    """Every sample of a local shard, checked as far as its headers go."""
    grouped: dict[str, dict[str, tuple[int, int]]] = {}
    broken = False
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile():
                    key, extension = split_name(member.name)
                    grouped.setdefault(key, {})[extension] = (member.offset_data, member.size)
    except (OSError, tarfile.TarError):
        broken = True
    entries = [_checked(Entry(str(path), key, members)) for key, members in grouped.items()]
    return entries + [Entry(str(path), "", {}, problem=BROKEN_SHARD)] * broken


def split_name(name: str) -> tuple[str, str]:
    """webdataset's key and extension: everything up to the first dot of the file's name, and what follows."""
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return folder + slash + key, extension.lower()


def _checked(entry: Entry) -> Entry:
    try:
        width, height, identity = _inspect(entry)
    except BadSample as bad:
        return Entry(entry.shard, entry.key, entry.members, problem=str(bad))
    return Entry(entry.shard, entry.key, entry.members, width, height, identity)


def _inspect(entry: Entry) -> tuple[int, int, str]:
    from PIL import Image

    members = entry.members
    if not any(name in members for name in PICTURES) and not ("png" in members and "mask.png" in members):
        raise BadSample(NO_PICTURE)
    try:
        described = entry.description()
        caption, subject = described["caption"], described["subject"]
        identity = str(described.get("identity", ""))
    except (KeyError, ValueError, TypeError, AttributeError):
        raise BadSample(NO_DESCRIPTION) from None
    if not isinstance(caption, str) or not isinstance(subject, str) or not has_word(caption, subject):
        raise BadSample(NO_NOUN)
    if described.get("faces", 1) != 1:
        raise BadSample(TWO_FACES)
    if not is_box(described.get("face_box")):
        raise BadSample(NO_BOX)
    if "mask.png" not in members and "png" not in members:
        raise BadSample(NO_MASK)
    try:
        width, height = Image.open(io.BytesIO(entry.read(entry.picture))).size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise BadSample(BROKEN_PICTURE) from None
    return width, height, identity


def has_word(caption: str, subject: str) -> bool:
    return bool(subject.strip()) and re.search(rf"\b{re.escape(subject.strip())}\b", caption, re.IGNORECASE) is not None


def is_box(box: object) -> bool:
    """Four numbers that span an area."""
    return (
        isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)
        and box[2] > box[0] and box[3] > box[1]
    )  # fmt: skip


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def write_whole(path: Path, content: bytes) -> None:
    """Nobody ever sees half a file; an interrupted write leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
