"""Shared by all tests: loads the repository as the package `omniportrait`.

`tests/unit` runs without ComfyUI. `tests/comfy`, `tests/lab` and `tests/server` have a conftest of their own that asks
for it, by `environment.use_comfyui()`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from side_by_side import pytest_addoption as _side_by_side
from side_by_side import pytest_configure  # noqa: F401  a hook

TESTS = Path(__file__).resolve().parent

torch.set_num_threads(1)
"""Threads that wait for each other make small models several times slower on a busy machine, and the tests' two
processes share two cores."""

# `python -m pytest` has put the root on the path, where `nodes` would hide ComfyUI's module, and pytest itself has put
# tests/, where tests/comfy would pose as a part of ComfyUI's own `comfy` package.
sys.path[:] = [entry for entry in sys.path if Path(entry or os.curdir).resolve() not in (TESTS, TESTS.parent)]

if "omniportrait" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("omniportrait_environment", TESTS.parent / "environment.py")
    _run = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_run)
    _run.load_pack()


def pytest_addoption(parser: pytest.Parser) -> None:
    _side_by_side(parser)
    parser.addoption("--quick", action="store_true", help="tests/unit and a chosen few, what one runs before a commit")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """--quick does not even import the files that have nothing for it."""
    if not config.option.quick or not collection_path.name.startswith("test_"):
        return None
    in_unit = collection_path.parent.name == "unit"
    return None if in_unit or "mark.quick" in collection_path.read_text(encoding="utf-8") else True


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    """Quick is what is marked so, and all of tests/unit that is not slow."""
    for item in items:
        if item.path.parent.name == "unit" and not item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.quick)
    if config.option.quick:
        left = [item for item in items if not item.get_closest_marker("quick")]
        items[:] = [item for item in items if item.get_closest_marker("quick")]
        config.hook.pytest_deselected(items=left)


def pytest_report_header() -> str:
    from omniportrait import environment

    comfyui = environment.find_comfyui()
    return f"ComfyUI: {comfyui or 'none (tests/unit only)'}"
