"""Loads the repository as the package `omniportrait` for a command of this folder that was started as a file of its own
(by a launcher, by another Python than run.py's, or again by a worker on Windows or macOS).

Such a worker runs the command's file, under another name, before it unpickles anything, and has run.py's search path,
where this folder is not: so the commands run this file by its path and do not import it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("omniportrait_run", Path(__file__).parents[1] / "run.py")
_run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_run)
_run.load_pack()
