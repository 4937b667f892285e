"""Settings of the Pivot ID Encoder's training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...models.pivot.encoder import TowerConfig
from .. import settings
from ..data.augment import Augmentation

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Objective:
    """Eq. 5. eta: weight of the localisation loss. maps: how the attention map is normalised. drop_both, drop_id:
    chances that text and ID, or the ID alone, are left out. face_only: chance that the denoising loss of a sample
    counts inside the face mask alone (FastComposer's masked loss; 0 is the paper). picture_error: 0 is the paper's
    error of the noise; else the error of the predicted picture, which is sigma^2 as large, at most so many times as
    large. An embedding says who it is where noise hides it, and there the error of the noise is next to nothing.
    timesteps: how t is drawn. "uniform" is the paper; "noisy" with a chance that grows in proportion to t."""

    eta: float = 2e-3
    maps: Literal["max", "none", "ratio"] = "max"
    drop_both: float = 0.1
    drop_id: float = 0.1
    face_only: float = 0.0
    picture_error: float = 0.0
    timesteps: Literal["uniform", "noisy"] = "uniform"


@dataclass(frozen=True)
class Config(settings.Run):
    """One run. family: sd15, sdxl or generic. pretrained: an open_clip checkpoint of the tower, or None.
    pretrained_tag: which one of open_clip's it is, as MODEL/TAG, which decides how pictures are normalised for it,
    where no open_clip_config.json lies beside it. trainable_layers: of the tower; None is all.
    """

    family: Literal["sd15", "sdxl", "generic"] = "sd15"
    tower: TowerConfig = field(default_factory=TowerConfig)
    pretrained: str | None = None
    pretrained_tag: str | None = None
    fusion: Literal["linear", "mlp"] = "linear"
    trainable_layers: int | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    objective: Objective = field(default_factory=Objective)

    def check(self) -> None:
        super().check()
        for name in ("mean", "std"):
            values = getattr(self.tower, name)
            if len(values) != 3 or not all(0 <= value <= 1 for value in values) or (name == "std" and not all(values)):
                raise ValueError(f"tower.{name} is {list(values)}, but must be three numbers from 0 to 1.")


def read(recipe: str | Path, overrides: Mapping[str, object] | None = None) -> Config:
    """The config of a YAML file, or of the recipe "sd15", "sdxl" or "demo" (`settings.read`)."""
    return settings.read(Config, RECIPES, recipe, overrides)
