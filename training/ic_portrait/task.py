"""IC-Portrait's nets as the trainer sees them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ...backbone.family import LATENT_SCALE
from ...models.ic.file import ICHeader, save
from ...models.ic.nets import ICNets, Shape
from ..base import Base
from ..data.dataset import Dataset
from ..task import Losses
from .config import Config
from .pairs import Pair, open_data
from .sheets import sheet
from .step import Inputs, Learner, gather, losses

EXPORT = "ic_portrait.safetensors"
FINEST = 32
"""Cells a side of the finest level that is matched."""


class ICTask:
    """What learns is one net after the other; the base model stays as it is."""

    models = "ic_portrait"

    def __init__(self, config: Config, base: Base, data: Dataset | None = None) -> None:
        """data: what `open_data` gives, where it is not to be read anew."""
        import comfy.ops

        self.config, self.base = config, base
        self.data = data or open_data(config)
        shape = Shape.of(base.net.model_config.unet_config)
        check_base(base.net.model_config.unet_config, shape, config)
        nets = ICNets(shape, comfy.ops.disable_weight_init, None if config.matching.steps else 0, device="meta")
        nets.begin_with(base.family.net)
        self.model = Learner(nets, config.objective.alpha, config.objective.beta).to(base.device)
        self.stage = config.stages[0].name

    def begin(self, stage: int) -> None:
        """Only the stage's net learns; what the other has learned stays to the bit."""
        self.stage = self.config.stages[stage].name
        own = ("nets.matching.", "zero.") if self.stage == "matching" else ("nets.appearance.",)
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(name.startswith(own))
            weight.grad = None

    def gather(self, samples: Sequence[Pair]) -> Inputs:
        return gather(samples, self.base, self.config)

    def losses(self, model: Learner, inputs: Inputs) -> Losses:
        return losses(model, inputs, self.base, self.config, self.stage)

    def terms(self) -> dict[str, object]:
        config = self.config
        return {
            "shape": json.dumps(asdict(self.model.nets.shape)),
            "objective": json.dumps(asdict(config.objective)),
            "matching": json.dumps(asdict(replace(config.matching, whole=True))),  # a matter of the file alone
            "crop": list(config.crop),
            "context": config.context,
            "data.face_labels": list(config.data.face_labels),
        }

    def header(self, step: int) -> ICHeader:
        """What the file says of these nets."""
        config, nets = self.config, self.model.nets
        whole = len(nets.shape.widths)
        level = min(config.matching.level, whole - 1)
        kept = whole if config.matching.whole else level + 1
        return ICHeader(
            nets.shape,
            kept if nets.matching else 0,
            config.context,
            level,
            config.objective.light,
            (config.objective.alpha, config.objective.beta),
            config.objective.flow,
            config.crop,
            config.data.resolution,
            step,
        )

    def export(self, step: int) -> Path:
        """In half precision, with how it came about: the same for equal runs."""
        config, path = self.config, self.config.folder / EXPORT
        made = {"samples": step * config.batch, "checkpoint": Path(config.checkpoint).name, "stage": self.stage}
        save(path, self.model.nets, self.header(step), torch.float16, made)
        return path

    def sheet(self) -> torch.Tensor:
        return sheet(self.base, self.model, self.header(0), self.data.samples, self.config)

    def warning(self) -> str | None:
        if self.config.matching.steps or self.config.objective.flow == "landmarks":
            return None
        return "WARNING: without a matching net and without landmarks the profile is not warped to the style's pose."


def check_base(unet_config: dict, shape: Shape, config: Config) -> None:
    """Raises: ValueError for a UNet that the nets cannot follow, and for a level of the matching net that is not there
    or too fine to be compared cell by cell."""
    if unet_config.get("adm_in_channels"):
        raise ValueError("IC-Portrait's nets are for Stable Diffusion 1.x, and this checkpoint is of another family.")
    if not config.matching.steps:
        return
    level, last = config.matching.level, len(shape.widths) - 1
    if not 0 <= level <= last:
        raise ValueError(f"matching.level is {level}, but this UNet's levels are 0 to {last}.")
    blocks = shape.num_res_blocks
    halved = sum(level > sum(blocks[: n + 1]) + n for n in range(len(blocks) - 1))
    side = config.data.resolution // LATENT_SCALE >> halved
    if side > FINEST:
        raise ValueError(
            f"matching.level {level} has {side} cells a side at this resolution, and all are compared with all; choose "
            f"a coarser level, of at most {FINEST}."
        )
