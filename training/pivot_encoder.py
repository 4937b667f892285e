"""Train a Pivot ID Encoder: `python run.py train pivot-encoder --help`, docs/training.md.

`torchrun` and `accelerate launch` may also start this file itself, on one machine or many.
"""

from __future__ import annotations

import sys
from pathlib import Path

if "omniportrait" not in sys.modules:
    import _package  # noqa: F401

if __name__ == "__main__":
    from omniportrait.training.pivot.command import main

    if status := main(Path(__file__).resolve()):
        raise SystemExit(status)
