"""`python run.py train pivot-encoder`: train a Pivot ID Encoder; docs/training.md."""

from ..pivot.command import main

__all__ = ["main"]
