"""`python run.py train pivot-encoder`: train a Pivot ID Encoder; docs/training.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..command import Command
from ..pivot import config

if TYPE_CHECKING:
    from ..base import Base
    from ..pivot.task import PivotTask

EXAMPLES = """examples:
  python run.py train pivot-encoder --config sd15 --checkpoint realisticVision.safetensors --data shards --out runs/me
  python run.py train pivot-encoder --config sdxl … --dry-run        memory and hours from a few real steps
  python run.py train pivot-encoder --config runs/me/config.yaml --resume
"""


def open_task(settings: config.Config, base: Base) -> PivotTask:
    from ..pivot.task import PivotTask

    return PivotTask(settings, base)


COMMAND = Command("pivot-encoder", "Train a Pivot ID Encoder for a checkpoint.", EXAMPLES, config.read, open_task)


def main(words: list[str]) -> int:
    return COMMAND.main(words)
