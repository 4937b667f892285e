"""The Pivot ID Encoder as the trainer sees it (OmniPortrait, Sec. 3.2, Eq. 5)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ...models.pivot.file import save
from ..base import Base
from ..data.dataset import Dataset, open_dataset
from ..data.samples import Sample
from ..task import Losses
from .config import Config
from .pretrained import make_encoder
from .sheets import sheet
from .step import Encoder, Inputs, gather, losses

EXPORT = "pivot_encoder.safetensors"


def open_data(config: Config) -> Dataset:
    return open_dataset(config, config.tower.image_size, config.augmentation)


class PivotTask:
    """What learns is the encoder; the base model stays as it is."""

    models = "pivot_encoders"

    def __init__(self, config: Config, base: Base, data: Dataset | None = None) -> None:
        """data: what `open_data` gives, where it is not to be read anew."""
        self.config, self.base = config, base
        self.data = data or open_data(config)
        self.model = make_encoder(config, base.text_width).to(base.device)

    def begin(self, stage: int) -> None:
        """There is one stage."""

    def gather(self, samples: Sequence[Sample]) -> Inputs:
        return gather(samples, self.base)

    def losses(self, model: Encoder, inputs: Inputs) -> Losses:
        return losses(model, inputs, self.base, self.config.objective, self.config.seed)

    def terms(self) -> dict[str, object]:
        config = self.config
        return {
            "encoder": json.dumps(asdict(self.model.config)),
            "trainable_layers": config.trainable_layers,
            "data.reference": config.data.reference,
            "data.face_labels": list(config.data.face_labels),
        }

    def export(self, step: int) -> Path:
        """In half precision, with how it came about: the same for equal runs."""
        config, path = self.config, self.config.folder / EXPORT
        made = {
            "objective.eta": config.objective.eta,
            "samples": step * config.batch,
            "checkpoint": Path(config.checkpoint).name,
        }
        save(path, self.model, step, torch.float16, made)
        return path

    def sheet(self) -> torch.Tensor:
        return sheet(self.base, self.model, self.data.samples, self.config)

    def warning(self) -> str | None:
        if not self.config.pretrained_tag or self.config.pretrained:
            return None
        return (
            f"WARNING: the image tower's {sum(w.numel() for w in self.model.tower.parameters()) / 1e6:.0f} million "
            "weights begin at random, which no recipe of ours is for: stop, and pass "
            "--set pretrained=open_clip_pytorch_model.bin with the file of OpenCLIP's ViT-L/14."
        )
