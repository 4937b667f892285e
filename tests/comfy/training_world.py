"""A small world to train in: a base model, a shard of rendered people, and whole runs of the command's own path."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator
from omniportrait.lab.testbed import checkpoints
from omniportrait.lab.world.shards import Shard
from omniportrait.lab.world.shards import write as render
from omniportrait.training.data.dataset import with_cache
from omniportrait.training.files import write_tensors
from omniportrait.training.pivot import config as settings
from omniportrait.training.pivot.task import PivotTask, open_data
from omniportrait.training.trainer import Trainer

SMALL = {
    "data.resolution": 64, "data.workers": 0, "data.cached": False, "batch": 4, "micro_batch": 2, "steps": 4,
    "tower": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}, "precision": "fp32",
    "warmup": 2, "rate": 1e-3, "ema": 0.9, "save_every": 2, "log_every": 1, "report_every": 1000, "objective.eta": 1.0,
    "report_samples": 1, "report_steps": 2, "trainable_layers": None, "objective.picture_error": 0.0,
    "objective.drop_both": 0.1, "objective.drop_id": 0.1,
}  # fmt: skip


def make_world(folder: Path) -> Path:
    """A folder with a base model and a shard of three people in three pictures each."""
    write_tensors(folder / "base.safetensors", checkpoints.demo(model_channels=32))
    render(Shard(folder / "people" / "train-000000.tar", first=0, count=3, views=2, size=64, seed=0))
    return folder


def config_of(world: Path, out: Path, **changes) -> settings.Config:
    places = {"checkpoint": str(world / "base.safetensors"), "out": str(out), "data.shards": [str(world / "people")]}
    return settings.read("demo", SMALL | places | changes)


class Curve:
    """A reporter that keeps the numbers."""

    def __init__(self):
        self.steps: list[dict] = []

    def step(self, step: int, numbers: dict) -> None:
        self.steps.append(numbers)

    def losses(self) -> list[float]:
        return [each["loss"] for each in self.steps]


def trained(
    config: settings.Config, base, stop_at: int | None = None, resume=False, minutes=None, cached=False,
    accelerator=None,
):  # fmt: skip
    """(trainer, its curve) after a run in this process."""
    accelerator = accelerator or Accelerator(cpu=True)
    data = open_data(config)
    data = with_cache(data, config, base, accelerator) if cached else data
    trainer = Trainer(PivotTask(config, base, data), accelerator, minutes)
    assert trainer.resume() == resume
    curve = Curve()
    trainer.run(curve, stop_at)
    return trainer, curve


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [w.detach() for w in trainer.task.model.parameters()] + trainer.average.values
