"""What a column of the table is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..cells import Cell
from ..portrait import Album, Portrait


@dataclass(frozen=True)
class Shown:
    """How a value is shown. better: +1 where more is better, -1 where less is, 0 for neither. of_face: None where the
    portrait has no face; the paper counts those as zeros."""

    key: str
    title: str
    better: int = 1
    factor: float = 1.0
    digits: int = 2
    of_face: bool = False


class Column(Protocol):
    """A judge of single portraits. key: equal for equal results."""

    key: str
    shown: tuple[Shown, ...]

    def __call__(self, cell: Cell, portrait: Portrait, album: Album) -> Mapping[str, float | None]:
        """A value for each of `shown`."""
        ...


class SetColumn(Protocol):
    """A judge of all portraits of a method together."""

    key: str
    shown: tuple[Shown, ...]

    def __call__(self, files: Sequence[Path], people: Sequence[str]) -> Mapping[str, float | None]:
        """people: of whom each is. A value for each of `shown`; where it has an interval, `KEY low` and `KEY high`."""
        ...


class NoFile(Exception):
    """A column's file is not there. The message is a sentence: which, where, under which licence."""


def only_file(weights: Path, folder: str, endings: Sequence[str], what: str) -> Path:
    """The one file of a column's folder. NoFile says what belongs there."""
    place = weights / folder
    found = sorted(path for path in place.glob("*") if path.suffix in endings) if place.is_dir() else []
    if len(found) != 1:
        raise NoFile(f"{'nothing' if not found else f'{len(found)} files'} in {place}: put {what} there.")
    return found[0]
