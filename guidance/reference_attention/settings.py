"""Every number of Reference Attention in one frozen object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ..omniportrait.settings import PRESENCE

Where = Literal["whole picture", "own face", "region"]
Levels = Literal["finest", "finest two", "all"]
COUNTS: dict[str, int | None] = {"finest": 1, "finest two": 2, "all": None}
"""How many of the downsampling levels that have self-attention, the finest first."""


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of Reference Attention.

    strength: how often the reference's tokens count; 0 is off, 1 appends them, 2 counts them twice (a bias of
    log(strength) on their logits). start_percent, end_percent: where in the sampling it acts, 0 is the first step.
    where: which of the picture's tokens see the reference. levels: which of the model's levels. balance: whether the
    unconditional rows see it too. seed: of the reference's noise, which never touches the sampler's. presence: of own
    faces, as RB-Guidance's: how prominent the subject's word must be, or the person is not in the picture.
    """

    strength: float = 1.0
    start_percent: float = 0.3
    end_percent: float = 1.0
    where: Where = "whole picture"
    levels: Levels = "finest"
    balance: bool = False
    seed: int = 0
    presence: float = PRESENCE

    def __post_init__(self) -> None:
        """ComfyUI 0.3.75 lets any text through where a V3 node offers a choice. Raises: ValueError with the choices."""
        for name, choices in (("where", Where), ("levels", Levels)):
            if getattr(self, name) not in get_args(choices):
                known = " or ".join(get_args(choices))
                raise ValueError(f"Reference Attention has no {name} {getattr(self, name)!r}; choose {known}.")

    @property
    def off(self) -> bool:
        """Nothing to append at any step."""
        return self.strength <= 0 or self.end_percent <= self.start_percent
