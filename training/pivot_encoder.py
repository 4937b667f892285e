"""Train a Pivot ID Encoder: `python run.py train pivot-encoder --help`, docs/training.md.

`torchrun` and `accelerate launch` may also start this file itself, on one machine or many.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if "omniportrait" not in sys.modules:  # started by a launcher, or again by a worker on Windows or macOS
    _spec = importlib.util.spec_from_file_location("omniportrait_run", Path(__file__).parents[1] / "run.py")
    _run = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_run)
    _run.load_pack()

if __name__ == "__main__":
    from omniportrait.training.pivot.command import main

    if status := main(Path(__file__).resolve()):
        raise SystemExit(status)
