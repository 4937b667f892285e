"""What lies in a folder of photographs: every photograph and caption, and what became of those that are of no use."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..files import write_whole

log = logging.getLogger(__name__)

READABLE = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".mpo", ".jps",
    ".tga", ".ppm", ".pgm", ".pnm",
)  # fmt: skip
FOREIGN = (
    ".heic", ".heics", ".heif", ".hif", ".avif", ".avifs", ".jxl", ".jp2", ".j2k", ".jpf", ".jpx", ".psd", ".psb",
    ".xcf", ".svg", ".exr", ".hdr", ".dng", ".raw", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".raf", ".orf", ".rw2",
    ".pef", ".srw", ".x3f", ".3fr", ".iiq",
)  # fmt: skip
"""Photographs for their owner too; whether they can be read depends on the installed Pillow."""
CAPTIONS = (".txt", ".caption")
TABLE = "captions.jsonl"
SHOWN = 10

NO_CAPTION = "no caption"
NOT_TEXT = "the caption is not UTF-8 text"
BAD_LINE = "a line of captions.jsonl that cannot be used"
NO_PHOTO = "a caption without a photograph"
BROKEN_LINK = "a link that leads nowhere"
SAME_FOLDER = "a link to a folder that is read already"
CLOSED = "a folder that cannot be read"


@dataclass(frozen=True)
class Photo:
    """name: its path in the folder. caption, subject: as given, or None. problem: why it is of no use, or ""."""

    path: Path
    name: str
    caption: str | None
    subject: str | None
    identity: str
    problem: str = ""


@dataclass
class LeftOut:
    """What is of no use, by reason."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.names.setdefault(reason, []).append(name)

    @property
    def reasons(self) -> Counter[str]:
        return Counter({reason: len(names) for reason, names in self.names.items()})

    def lines(self) -> Iterator[str]:
        """The reasons, the most frequent first, each with its first names."""
        for reason, count in self.reasons.most_common():
            shown = ", ".join(self.names[reason][:SHOWN])
            yield f"{count:8}  {reason}: {shown}{', …' if count > SHOWN else ''}"

    def write(self, path: Path) -> None:
        """All of them, one a line: reason, tab, name."""
        lines = (f"{reason}\t{name}\n" for reason, names in self.names.items() for name in names)
        write_whole(path, "".join(lines).encode("utf-8", "surrogateescape"))


def list_photos(root: Path, people: bool, left: LeftOut) -> list[Photo]:
    """Every photograph under the folder, linked folders included, in order, with its caption.

    people: the folder that a photograph lies in is its identity. ValueError if there is none.
    """
    files = sorted(walk(root, left))
    told = read_table(root / TABLE, left)
    photos, used = [], set()
    texts = {(path.with_suffix(""), path.suffix.lower()): path for path in files}
    for path in files:
        if path.suffix.lower() not in READABLE + FOREIGN:
            continue
        name, problem = path.relative_to(root).as_posix(), ""
        caption, subject = told.pop(name, (None, None))
        own = [texts[path.with_suffix(""), suffix] for suffix in CAPTIONS if (path.with_suffix(""), suffix) in texts]
        used.update(own)
        if not caption and own:
            caption, problem = read_caption(own[0])
        identity = path.parent.relative_to(root).as_posix() if people and path.parent != root else ""
        photos.append(Photo(path, name, caption or None, subject, identity, problem))
    for path in files:
        if path.suffix.lower() in CAPTIONS and path not in used:
            left.add(NO_PHOTO, path.relative_to(root).as_posix())
    for name in told:
        left.add(NO_PHOTO, f"{name} ({TABLE})")
    if not photos:
        raise ValueError(f"There are no photographs in {root}: give a folder with jpg, png or webp files.")
    return photos


def walk(root: Path, left: LeftOut) -> Iterator[Path]:
    """Files under a folder. Links are followed, each folder once; what macOS puts beside files (`._*`) is none."""
    seen: set[str] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop(0)
        where = os.path.realpath(folder)
        if where in seen:
            left.add(SAME_FOLDER, folder.relative_to(root).as_posix())
            continue
        seen.add(where)
        try:
            entries = sorted(folder.iterdir())
        except OSError:
            left.add(CLOSED, folder.relative_to(root).as_posix())
            continue
        folders = [path for path in entries if path.is_dir()]
        waiting = [path for path in folders if not path.is_symlink()] + waiting
        waiting += [path for path in folders if path.is_symlink()]  # last, so that a photograph keeps its own name
        for path in entries:
            if path.name.startswith("._"):
                continue
            if path.is_file():
                yield path
            elif path.is_symlink() and not path.exists():
                left.add(BROKEN_LINK, path.relative_to(root).as_posix())


def read_caption(path: Path) -> tuple[str | None, str]:
    """A caption file's text, or why there is none."""
    try:
        return path.read_bytes().decode("utf-8-sig").strip(), ""
    except UnicodeDecodeError:
        log.warning("%s is not UTF-8 text: save it as UTF-8.", path)
        return None, NOT_TEXT


def read_table(table: Path, left: LeftOut) -> dict[str, tuple[str, str | None]]:
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
            left.add(BAD_LINE, f"line {number}")
            log.warning('%s, line %d is not {"file": …, "caption": …} in UTF-8.', table, number)
    return told
