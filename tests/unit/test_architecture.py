"""docs/architecture.md names every file of the pack's rooms, and no file that is not there."""

from __future__ import annotations

import re

from omniportrait import environment

ROOT = environment.ROOT
ROOMS = ("nodes", "sampling", "guidance", "backbone", "models", "training", "evaluation", "demo")


def on_the_map() -> set[str]:
    """The files of the page's tables, under the folder of the heading that they stand below."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    sections = re.split(r"^### `([\w/]*)/`$", text.partition("## The map")[2], flags=re.MULTILINE)
    named = zip(sections[1::2], sections[2::2], strict=True)
    return {f"{room}/{name}" for room, table in named for name in re.findall(r"^\| `(\S+)` \|", table, re.MULTILINE)}


def test_the_map_has_every_file():
    files = {path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert {file for file in files if not file.endswith("__init__.py")} <= on_the_map()


def test_the_map_has_no_file_that_is_gone():
    assert {name for name in on_the_map() if not (ROOT / name).exists()} == set()
