"""The rival of IC-Portrait's nets: a LoRA on the UNet's self-attention, in the same wide call (in-context LoRA).

    python run.py make in-context-lora --config demo --checkpoint FILE --data world --out runs/lora --minutes 60

It learns by Eq. 3 from the pairs of `train ic-portrait`, with that command's options, and needs no second network: the
profile half beside the picture is all that it is told. What comes out is a LoRA for `bench ic-portrait --lora`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ...training.base import Base
from ...training.command import Command
from ...training.data.dataset import Dataset
from ...training.ic_portrait import config as settings
from ...training.ic_portrait.config import Config
from ...training.ic_portrait.pairs import Pair, open_data
from ...training.ic_portrait.sheets import fixed_pairs
from ...training.ic_portrait.step import Inputs, denoising, draw, gather, of_halves, rows_of
from ...training.spf_portrait import lora_file
from ...training.spf_portrait.adapters import Adapters
from ...training.task import Losses

RANK = 16
EXPORT = "in_context_lora.safetensors"


class InContextTask:
    """What learns are the adapters of self-attention; nothing else of the base model does."""

    models = "loras"

    def __init__(self, config: Config, base: Base, data: Dataset | None = None) -> None:
        self.config, self.base = config, base
        self.data = data or open_data(config)
        self.model = Adapters(base.family.net, "lora", RANK, float(RANK), config.seed, "attn1").to(base.device)
        self.keys = lora_file.keys_of(base.model, self.model.names)
        base.attach = self.model.attach
        base.let_go()

    def begin(self, stage: int) -> None:
        """There is one stage."""

    def gather(self, samples: Sequence[Pair]) -> Inputs:
        return gather(samples, self.base, self.config)

    def losses(self, model: torch.nn.Module, inputs: Inputs) -> Losses:
        chance = draw(inputs, self.base.timesteps, self.config)
        errors = denoising(self.base, inputs, chance, rows_of(inputs, chance, self.base), None, self.config)
        return of_halves(*errors, inputs.weights.to(self.base.device), self.config)

    def terms(self) -> Mapping[str, object]:
        return {"rank": RANK, "crop": list(self.config.crop), "context": self.config.context}

    def export(self, step: int) -> Path:
        state = lora_file.content(self.model, self.keys)
        lora_file.check(self.base.model, state, self.model.names)
        path = self.config.folder / EXPORT
        lora_file.save(path, state, {"omniportrait.method": "in-context lora", "omniportrait.steps": str(step)})
        return path

    def sheet(self) -> torch.Tensor:
        """The pairs that it learns from; portraits are for `bench ic-portrait`."""
        pairs = fixed_pairs(self.data.samples, self.config.report_samples)
        return torch.cat([torch.cat([each.profile, each.lit], 2).float() / 255 for each in pairs], 1)

    def warning(self) -> str | None:
        return None


def read(recipe: str, overrides: Mapping[str, object]) -> Config:
    """`train ic-portrait`'s config without a matching net."""
    return settings.read(recipe, {**overrides, "matching.steps": 0})


COMMAND = Command(
    "in-context-lora",
    "A LoRA on self-attention, the rival of IC-Portrait's nets.",
    "",
    read,
    InContextTask,
    door="make",
)


def main(words: list[str]) -> int:
    return COMMAND.main(words)
