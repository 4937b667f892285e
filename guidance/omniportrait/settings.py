"""Every number of RB-Guidance in one frozen object. The paper's value is the default where it has one, but for
`every`: 2 costs little more than half and keeps the embedded model's likeness (docs/results/cheaper.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

Mode = Literal["calibrated", "literal"]
Refinement = Literal["outer", "inner"]
Reduction = Literal["mean", "sum"]
Checkpointing = Literal["auto", "on", "off"]
Curve = Literal["constant", "fade in", "fade out"]
GuidedPass = Literal["full", "shared"]
"""`full`: a pass of its own beside ComfyUI's call, which stays bit-equal. `shared`: in ComfyUI's call, equal up to
rounding."""

PRESENCE = 1.4
PRESENCE_FROM = 600.0
"""Timestep from which on presence is asked for. Both were measured on the embedded model (docs/results/presence.md)."""
T0 = 671.0
"""Timestep of the reference's features, and of the height against which presence is held."""
SETTLED = 300.0
"""Timestep from which on nobody appears any more: a picture without the person is not looked at again, so that a tile
of background costs one pass."""


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of RB-Guidance.

    strength: multiplies the final gradient; 0 is off. start_percent, end_percent: where in the sampling, 0 is the first
    step; both these and u have to hold. curve: of the strength over what is left. p: of the energy. u: guided while t
    <= u T. t0: timestep of the reference features. gamma, alpha, beta: of the mask, and its threshold. refinement:
    where A_s acts in the mask. reduction: sum or mean in the similarity. gain, clip: a factor on the gradient, and its
    cap as a share of the CFG difference. sigma_scale: multiply the gradient by sqrt(1 - abar_t), which the score
    identity has and the paper's step lacks. background_masking: off is the paper's ablation (match and guide over the
    whole picture).
    block: output block whose result is the feature; -1 chooses by the model. ensemble: noises averaged for the
    reference. reference_seed: seed of those noises. checkpointing: auto, on or off. every: the gradient is made at
    every so many sigmas and held in between; 1 is the paper's way. guided_pass: where the rows with a gradient run.
    presence: how prominent the subject's word must be in the attention (mask.prominence), in heights on the person's
    photographs, or the person is not in the picture; 0 is Eq. 6 as printed, which finds a face anywhere.
    """

    strength: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    curve: Curve = "constant"
    p: float = 8.5
    u: float = 0.6
    t0: float = T0
    gamma: int = 3
    alpha: float = 2.0
    beta: float = 0.5
    refinement: Refinement = "outer"
    reduction: Reduction = "mean"
    gain: float = 40.0
    clip: float = 0.1
    sigma_scale: bool = False
    background_masking: bool = True
    block: int = -1
    ensemble: int = 4
    reference_seed: int = 0
    checkpointing: Checkpointing = "auto"
    every: int = 2
    guided_pass: GuidedPass = "full"
    presence: float = PRESENCE

    def __post_init__(self) -> None:
        """ComfyUI 0.3.75 lets any text through where a V3 node offers a choice. Raises: ValueError with the choices."""
        _check("curve", self.curve, Curve)
        _check("refinement", self.refinement, Refinement)
        _check("reduction", self.reduction, Reduction)
        _check("checkpointing", self.checkpointing, Checkpointing)
        _check("guided_pass", self.guided_pass, GuidedPass)
        if self.every < 1:
            raise ValueError(f"RB-Guidance cannot guide every {self.every} steps; choose 1 or more.")

    @property
    def off(self) -> bool:
        """Nothing to add at any step."""
        return self.strength == 0 or self.u == 0 or self.end_percent <= self.start_percent

    def at(self, t: float) -> Settings:
        """The settings of a timestep: where noise hides who is there, nobody is declared absent."""
        return self if t <= PRESENCE_FROM else replace(self, presence=0.0)

    def in_mode(self, mode: Mode) -> Settings:
        """`literal` is the paper's equations as printed: the sum, no factor, no cap, no sigma scale, a gradient at
        every step, a mask in any picture. `calibrated` leaves the inputs be."""
        _check("mode", mode, Mode)
        if mode == "literal":
            return replace(self, reduction="sum", gain=1.0, clip=0.0, sigma_scale=False, every=1, presence=0.0)
        return self


def _check(name: str, value: str, choices: object) -> None:
    known = get_args(choices)
    if value not in known:
        raise ValueError(f"RB-Guidance has no {name} {value!r}; choose {' or '.join(known)}.")
