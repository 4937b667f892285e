"""How the control map is made: one frozen object, shared by the training and by the node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reading = Literal["measured", "literal"]
Gate = Literal["sfcm", "difference", "none"]
Distance = Literal["states", "constant"]


@dataclass(frozen=True)
class ControlMap:
    """Settings of Eq. 7 to 9.

    gate: sfcm is Eq. 9; difference is N of Eq. 7 alone; none is 0 everywhere (the paper's "w/o SFCM").
    reading: how the subtraction of the figure is read. measured takes a phrase's share of the reference path's
    attention as it is, and multiplies what is left by `gain`. literal takes the response path's maps, each stretched
    to 0..1, without a gain: that wiped the map out in the portrait world (docs/spf_portrait.md).
    blur: side of the mean filter over the noise difference, in latent cells, odd.
    distance: of a phrase from the target. states is 1 - cosine of the text encoder's states, as drawn; constant is
    `constant` for every phrase, for text encoders whose distances say nothing.
    subtract: factor of the distances; 0 leaves the noise difference alone.
    floor: a difference whose maximum is below this share of the prediction's RMS counts in proportion, so that a text
    without an effect gives no map.
    """

    gate: Gate = "sfcm"
    reading: Reading = "measured"
    blur: int = 3
    gain: float = 3.0
    distance: Distance = "states"
    constant: float = 0.5
    subtract: float = 1.0
    floor: float = 0.02

    def check(self) -> None:
        """ValueError, one sentence, for what has no meaning."""
        if self.blur < 1 or self.blur % 2 == 0:
            raise ValueError(f"blur is {self.blur}, but must be an odd number of latent cells: 1, 3, 5, ….")
