"""`python run.py train ic-portrait`: train IC-Portrait's nets for a checkpoint; docs/training.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..command import Command
from ..ic_portrait import config

if TYPE_CHECKING:
    from ..base import Base
    from ..ic_portrait.task import ICTask

EXAMPLES = """examples:
  python run.py train shards photos --people --out shards     a folder for each person, two photographs or more
  python run.py train ic-portrait --config sd15 --checkpoint realisticVision.safetensors --data shards --out runs/me
  python run.py train ic-portrait --config sd15 … --dry-run          memory and hours from a few real steps
  python run.py train ic-portrait --config runs/me/config.yaml --resume
"""


def open_task(settings: config.Config, base: Base) -> ICTask:
    from ..ic_portrait.task import ICTask

    return ICTask(settings, base)


COMMAND = Command("ic-portrait", "Train IC-Portrait's nets for a checkpoint.", EXAMPLES, config.read, open_task)


def main(words: list[str]) -> int:
    return COMMAND.main(words)
