"""The key of a kept picture follows the code that made it, wherever that lies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from omniportrait.lab.bench import judge, matrix, portraits
from omniportrait.lab.bench.sources import ROOT, of_source

RENDERER = '''"""Draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..colours import RED

if TYPE_CHECKING:
    from ..scenes import Scene

SIZE = 8


def draw(scene: Scene) -> list:
    """Red, as the scene says."""
    from ..light import lit

    return [lit(RED, scene)] * SIZE
'''
COLOURS = "RED = (1, 0, 0)\n"


def laid(folder: Path, **files: str) -> Path:
    """A folder with these modules, whose names have `_` for a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in files.items():
        file = folder.joinpath(*name.split("_")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def key(tmp_path):
    """Of modules laid down anew."""
    return lambda **files: of_source(laid(tmp_path / "code", **files))


def test_files_may_be_moved_and_renamed(key):
    moved = RENDERER.replace("..colours", "...paint.tones").replace("..light", "...light")
    assert key(world_draw=RENDERER, colours=COLOURS) == key(pictures_world_renderer=moved, paint_tones=COLOURS)


def test_a_file_may_be_split(key):
    head, function = RENDERER.split("SIZE = 8")
    assert key(a=RENDERER, b=COLOURS) == key(a=f"from .b import SIZE\n{function}", b=f"{COLOURS}{head}SIZE = 8")


def test_comments_and_line_breaks_do_not_count(key):
    other = RENDERER.replace("Red, as", "As red as").replace("SIZE = 8", "# Pixels.\nSIZE = (\n    8\n)")
    assert other != RENDERER and key(a=RENDERER) == key(a=other)


@pytest.mark.parametrize("old, new", [("SIZE = 8", "SIZE = 9"), ("RED, scene", "RED, None"), ("def draw", "def paint")])
def test_any_other_word_of_the_code_counts(key, old, new):
    assert key(a=RENDERER) != key(a=RENDERER.replace(old, new))


def test_what_is_added_or_left_out_counts(key, tmp_path):
    both = key(a=RENDERER, b=COLOURS)
    assert both != key(a=RENDERER) and both != key(a=RENDERER, b=COLOURS + COLOURS)
    folder = laid(tmp_path / "code", a=RENDERER, b=COLOURS)
    assert of_source(folder, without=(folder / "b.py",)) == key(a=RENDERER)


def test_every_place_that_a_benchmark_names_is_there():
    for place in {*portraits.SOURCES, *portraits.DECODER, *judge.MEASURES, *matrix.SOURCES}:
        assert of_source(place) != of_source()
    assert all(file.is_relative_to(ROOT / "guidance") for file in portraits.DEFAULTS)
    with pytest.raises(FileNotFoundError):
        of_source("demo/world")
