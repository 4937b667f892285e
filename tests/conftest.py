"""Shared by all tests: loads the repository as the package `omniportrait`.

`tests/unit` runs without ComfyUI. `tests/comfy`, `tests/lab` and `tests/server` have a conftest of their own that asks
for it, by `environment.use_comfyui()`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent

# `python -m pytest` has put the root on the path, where `nodes` would hide ComfyUI's module, and pytest itself has put
# tests/, where tests/comfy would pose as a part of ComfyUI's own `comfy` package.
sys.path[:] = [entry for entry in sys.path if Path(entry or os.curdir).resolve() not in (TESTS, TESTS.parent)]

if "omniportrait" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("omniportrait_environment", TESTS.parent / "environment.py")
    _run = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_run)
    _run.load_pack()


def pytest_report_header() -> str:
    from omniportrait import environment

    comfyui = environment.find_comfyui()
    return f"ComfyUI: {comfyui or 'none (tests/unit only)'}"
