"""Settings of SPF-Portrait's training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from ...guidance.spf_portrait.settings import ControlMap
from .. import settings
from ..stages import Stage

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Enhance:
    """Eq. 10 and 11. kind: difference is the paper's, direct is what it argues against, none leaves the term out. clip:
    the file of an open_clip checkpoint, or of `make attribute-measures`. model: open_clip's name for that model.
    decode: how the one-step picture becomes pixels: by the VAE, or by the family's linear preview, which is free and
    blurred. share: at most so much of a batch."""

    kind: Literal["difference", "direct", "none"] = "none"
    clip: str | None = None
    model: str = "ViT-B-32"
    decode: Literal["vae", "preview"] = "vae"
    share: float = 0.5


@dataclass(frozen=True)
class Objective:
    """Eq. 12. control: how the map is made. balance: auto scales the terms at the first step of stage 2, so that each
    one's gradient is `text`, `fine` and `enhance` times as long as the denoising loss's; fixed takes these as factors.

    null_path: chance that the target is left out of the response path too, half of these with no text at all: the tuned
    model is then held to the original everywhere (ours). earlier: of the others the share whose text names the
    attribute of `start`. drop: chance of no text in stage 1. weighting: of the denoising loss. layers: which
    cross-attention is aligned: all of it, or the level of about 16x16 tokens alone, where memory is short.
    """

    control: ControlMap = field(default_factory=ControlMap)
    balance: Literal["auto", "fixed"] = "auto"
    text: float = 1.0
    fine: float = 1.0
    enhance: float = 0.5
    null_path: float = 0.5
    earlier: float = 0.3
    drop: float = 0.1
    weighting: Literal["uniform", "min_snr"] = "uniform"
    layers: Literal["all", "coarse"] = "all"


@dataclass(frozen=True)
class Config(settings.Run):
    """One run. target: the phrase that names the attribute, for samples that do not name their own. fit: how many of
    the steps are stage 1, at `rate`; the others are stage 2, at `align_rate`. learn: lora, or all of cross-attention's
    matrices. alpha: LoRA's, whose scale is alpha / rank. start: a LoRA that belongs to the original already."""

    target: str = ""
    fit: int = 1000
    align_rate: float = 1e-4
    learn: Literal["lora", "attn2"] = "lora"
    rank: int = 16
    alpha: float = 16.0
    start: str | None = None
    objective: Objective = field(default_factory=Objective)
    enhance: Enhance = field(default_factory=Enhance)

    faces: ClassVar[bool] = False

    @property
    def stages(self) -> tuple[Stage, ...]:
        both = Stage("fit", self.fit, self.rate), Stage("align", self.steps - self.fit, self.align_rate)
        return tuple(stage for stage in both if stage.steps)

    def check(self) -> None:
        super().check()
        self.objective.control.check()
        if not 0 <= self.fit <= self.steps:
            raise ValueError(f"fit is {self.fit}, but must be from 0 to steps, which is {self.steps}.")
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"rank is {self.rank} and alpha {self.alpha}, but both must be positive.")
        if self.fit == 0 and self.objective.balance == "auto":
            raise ValueError(
                "fit is 0, but balance: auto measures what stage 1 has changed: give fit some steps, or set "
                "objective.balance=fixed and the factors objective.text and objective.fine, such as 0.03."
            )
        if self.enhance.kind != "none" and not self.enhance.clip:
            raise ValueError(
                "enhance.clip is not set, and without a CLIP there is no response enhancement: give the file of an "
                "open_clip checkpoint, or set enhance.kind=none."
            )


def read(recipe: str | Path, overrides: Mapping[str, object] | None = None) -> Config:
    """The config of a YAML file, or of the recipe "sd15", "sdxl" or "demo" (`settings.read`)."""
    return settings.read(Config, RECIPES, recipe, overrides)
