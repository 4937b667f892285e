"""What a task tells the trainer: what learns, of which batches, by which losses, and what comes out (pivot/task.py).

The trainer knows no task. Most of this is what open_clip_train asks of its task classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from .base import Base
from .data.dataset import Dataset
from .data.plan import Slot
from .data.samples import Sample
from .settings import Run


class Inputs(Protocol):
    """A micro-batch. weights: [B], 0 for bad samples. slots: their places. problems: bad samples' reasons by number."""

    weights: torch.Tensor
    slots: list[Slot]
    problems: dict[int, str]


@dataclass(frozen=True, eq=False)
class Losses:
    """Sums over the good samples of a micro-batch. total carries the gradient. parts: what is reported, by name: the
    sum of a term, and of how many samples it is."""

    total: torch.Tensor
    parts: Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class Task(Protocol):
    """config: the run's settings. base: the frozen model. data: samples and their order. model: what learns, by those
    of its parameters that require a gradient. models: the folder of ComfyUI's models for the exported file."""

    config: Run
    base: Base
    data: Dataset
    model: torch.nn.Module
    models: str

    def begin(self, stage: int) -> None:
        """A stage of the run begins, or goes on from a state on disk. Every process calls."""

    def gather(self, samples: Sequence[Sample]) -> Inputs:
        """A micro-batch's tensors, from the cache or computed now."""

    def losses(self, model: torch.nn.Module, inputs: Inputs) -> Losses:
        """Of a micro-batch. model: `self.model`, or accelerate's wrapper of it."""

    def terms(self) -> Mapping[str, object]:
        """What a run cannot change on its way, as plain values, beside what the trainer knows itself."""

    def export(self, step: int) -> Path:
        """Write what ComfyUI loads into the run's folder; the trainer has put the averaged weights in place."""

    def sheet(self) -> torch.Tensor:
        """[3, H, W] in 0..1: what has been learned so far, in pictures."""

    def warning(self) -> str | None:
        """What the user should know before the first step."""
