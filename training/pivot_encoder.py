"""Train a Pivot ID Encoder: `python run.py train pivot-encoder --help`, docs/training.md.

`torchrun` and `accelerate launch` may also start this file itself, on one machine or many.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if "omniportrait" not in sys.modules:
    runpy.run_path(str(Path(__file__).with_name("_package.py")))

if __name__ == "__main__":
    from omniportrait.training.pivot.command import main

    if status := main(Path(__file__).resolve()):
        raise SystemExit(status)
