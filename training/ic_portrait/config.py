"""Settings of the training of IC-Portrait's nets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...models.ic.file import Context
from .. import settings
from ..stages import Stage

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Matching:
    """The first stage; steps 0: there is no matching net. objective: "denoising" is the paper's Eq. 3; "correspondence"
    needs shards that know the way from picture to picture (`make pictures --places`); "both" is their sum. level: the
    feature by which places are matched, and the finest that the correspondence is taught at: a level with attention, of
    32x32 cells or fewer. whole: the file has all blocks, which the flow `layer` reads; else none behind `level`."""

    steps: int = 200
    rate: float = 1e-5
    objective: Literal["denoising", "correspondence", "both"] = "denoising"
    level: int = 5
    whole: bool = True


@dataclass(frozen=True)
class Objective:
    """flow: who says where the profile's places lie while the appearance net learns: as in guidance's settings. alpha,
    beta: of Eq. 7. light: the largest share of the style's pixels, n in Eq. 1. drop_context: chance that the text is
    left out. face: how much more a place inside the face counts; 1 is the paper. picture_error: 0 is the paper's error
    of the noise; else that of the predicted picture, sigma^2 as large, at most so many times. profile: what the given
    half counts; 1 is the paper."""

    flow: Literal["landmarks", "shared", "none"] = "landmarks"
    alpha: float = 0.8
    beta: float = 0.2
    light: float = 0.2
    drop_context: float = 0.1
    face: float = 1.0
    picture_error: float = 0.0
    profile: float = 1.0


@dataclass(frozen=True)
class Config(settings.Run):
    """One run. steps: of both stages; rate: the appearance net's. crop: sides of the square in sides of the face's box,
    from and to, drawn for both pictures. context: the text that the UNet reads, "a photo of a woman", or none."""

    matching: Matching = field(default_factory=Matching)
    objective: Objective = field(default_factory=Objective)
    crop: tuple[float, ...] = (1.7, 2.3)
    context: Context = "text"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Matching, then appearance."""
        first = (Stage("matching", self.matching.steps, self.matching.rate),) if self.matching.steps else ()
        return (*first, Stage("appearance", self.steps - self.matching.steps, self.rate))

    def check(self) -> None:
        super().check()
        if not 0 <= self.matching.steps < self.steps:
            raise ValueError(
                f"matching.steps is {self.matching.steps}, but must be from 0 to below steps, {self.steps}, which "
                "counts both stages."
            )
        if self.objective.flow == "shared" and not self.matching.steps:
            raise ValueError("objective.flow is shared, which is the matching net's: set matching.steps above 0.")
        if len(self.crop) != 2 or not 1 <= self.crop[0] <= self.crop[1] <= 8:
            raise ValueError(f"crop is {list(self.crop)}, but must be two numbers from 1 to 8, the smaller one first.")
        if self.data.bucket_step:
            raise ValueError("data.bucket_step must be 0: IC-Portrait's pictures are squares around a face.")
        if self.data.cached:
            raise ValueError("data.cached must be false: each crop and each mask is drawn anew.")


def read(recipe: str | Path, overrides: Mapping[str, object] | None = None) -> Config:
    """The config of a YAML file, or of the recipe "sd15" or "demo" (`settings.read`)."""
    return settings.read(Config, RECIPES, recipe, overrides)
