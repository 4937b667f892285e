"""`python run.py train spf-portrait`: teach a checkpoint one attribute and nothing else; docs/spf_portrait.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..command import Command
from ..spf_portrait import config

if TYPE_CHECKING:
    from ..base import Base
    from ..spf_portrait.task import SpfTask

EXAMPLES = """examples:
  python run.py train spf-portrait --config sd15 --checkpoint realisticVision.safetensors --data shards \\
      --target "wearing a hat" --out runs/hat
  python run.py train spf-portrait --config sdxl … --dry-run         memory and hours from a few real steps
  python run.py train spf-portrait --config runs/hat/config.yaml --resume
  python run.py train spf-portrait … --start runs/hat/lora.safetensors --target "with glasses" --out runs/glasses
"""
MORE = {
    "target": 'the phrase that names the attribute, such as "wearing a hat"',
    "start": "a LoRA that belongs to the original already: a second attribute after a first",
}


def open_task(settings: config.Config, base: Base) -> SpfTask:
    from ..spf_portrait.task import SpfTask

    return SpfTask(settings, base)


COMMAND = Command(
    "spf-portrait", "Teach a checkpoint one attribute and leave the rest as it was.", EXAMPLES, config.read, open_task,
    MORE,
)  # fmt: skip


def main(words: list[str]) -> int:
    return COMMAND.main(words)
