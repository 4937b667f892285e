"""Results in a file, a line of JSON each, so that an interrupted benchmark goes on; and a benchmark's parts."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Key, Value = TypeVar("Key"), TypeVar("Value")


def kept(file: Path, entry: Callable[[dict], tuple[Key, Value]]) -> dict[Key, Value]:
    """What `keep` wrote, as key and value by `entry`; a line that was cut short is left out."""
    rows = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            key, value = entry(json.loads(line))
        except (ValueError, KeyError):
            continue
        rows[key] = value
    return rows


def keep(file: Path, row: dict) -> None:
    """One line more."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.write("\n" + json.dumps(row))  # first: the line before may have been cut short


def part_of(text: str) -> tuple[int, int]:
    """`I/N` as numbers; any other word is refused, since a wrong one would leave cells out without a word."""
    try:
        part, parts = map(int, text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: write I/N, for example 1/2") from None
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"{text}: there are the parts 1/{parts} to {parts}/{parts}")
    return part, parts
