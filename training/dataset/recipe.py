"""What is selected, fetched and kept: frozen dataclasses, read from YAML, every key and value checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .. import settings

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Columns:
    """Names of the metadata's columns; license and unsafe may be empty where there is none."""

    url: str = "url"
    text: str = "text"
    license: str = ""
    unsafe: str = ""


@dataclass(frozen=True)
class Fetch:
    """seconds: for a whole picture. connect: for a connection. at_once: pictures in flight, a_host: of one host.

    budget: bytes of pictures in flight. robots: whether robots.txt is asked. contact: an address in the User-Agent for
    people whose server is visited. private: "127.0.0.1:8181" of servers of one's own, which are else never reached.
    opt_out: files with addresses, hosts and sha256 to leave out.
    """

    seconds: float = 20.0
    connect: float = 5.0
    most_bytes: int = 32 << 20
    redirects: int = 4
    at_once: int = 64
    a_host: int = 4
    budget: int = 256 << 20
    robots: bool = True
    contact: str = ""
    private: tuple[str, ...] = ()
    opt_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """least: pixels of the shorter side (the paper: over 512). strip: longest side over shortest, at most.

    most_pixels: as the file's header says, before anything is decoded. side: larger pictures are reduced to it.
    """

    least: int = 513
    most_pixels: int = 64_000_000
    strip: float = 3.0
    side: int = 2048


@dataclass(frozen=True)
class Face:
    """least: pixels of the larger side of the box. second: share of the largest face's area from which another counts.

    turned: degrees from upright, at most. facexlib: folders where its files may lie; without them the built-in one.
    thorough: tight crops and small or turned faces are looked for, too, which takes ten times as long.
    """

    least: int = 48
    second: float = 0.1
    turned: float = 30.0
    facexlib: tuple[str, ...] = ()
    thorough: bool = False


@dataclass(frozen=True)
class Person:
    """model: folder of a detector that transformers loads, or none: no check. inside: share of the face in the box."""

    model: str | None = None
    score: float = 0.4
    inside: float = 0.95


@dataclass(frozen=True)
class Caption:
    """model: folder of a captioner that transformers loads, or none: the text that came with the address."""

    model: str | None = None
    tokens: int = 40


@dataclass(frozen=True)
class Recipe:
    """where: SQL over the metadata's own columns, or "". unsafe: rows of this score or above are left out.

    nouns: "adults" leaves out captions that name a child. unit: rows that are one piece of work.
    """

    columns: Columns = field(default_factory=Columns)
    where: str = ""
    unsafe: float = 0.5
    nouns: Literal["adults", "all"] = "adults"
    fetch: Fetch = field(default_factory=Fetch)
    picture: Picture = field(default_factory=Picture)
    face: Face = field(default_factory=Face)
    person: Person = field(default_factory=Person)
    caption: Caption = field(default_factory=Caption)
    unit: int = 2000

    def __post_init__(self) -> None:
        fetch, picture = self.fetch, self.picture
        for name, value in {
            "unit": self.unit, "fetch.seconds": fetch.seconds, "fetch.connect": fetch.connect,
            "fetch.at_once": fetch.at_once, "fetch.a_host": fetch.a_host, "fetch.most_bytes": fetch.most_bytes,
            "picture.least": picture.least, "picture.most_pixels": picture.most_pixels, "picture.side": picture.side,
        }.items():  # fmt: skip
            if value <= 0:
                raise ValueError(f"{name} is {value}, but must be above 0.")
        if fetch.budget < fetch.most_bytes:
            raise ValueError("fetch.budget is below fetch.most_bytes, so the largest picture could never be fetched.")


def read(recipe: str | Path, overrides: Mapping[str, object] | None = None) -> Recipe:
    """The recipe of a YAML file, or of the one of that name ("laion", "coyo"). ValueError says what is wrong with it.

    overrides: dotted names ("fetch.seconds") to values.
    """
    return settings.read(Recipe, RECIPES, recipe, overrides)


def difference(one: str, other: str) -> str:
    """The first line in which two recipes as YAML differ, or ""."""
    pairs = zip(one.splitlines(), other.splitlines(), strict=False)
    return next((f"`{a.strip()}` there, `{b.strip()}` now" for a, b in pairs if a != b), "")
