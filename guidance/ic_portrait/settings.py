"""Every number of IC-Portrait in one frozen object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

FlowSource = Literal["landmarks", "shared", "layer", "none"]
MOST_PASSES = 8


@dataclass(frozen=True)
class Settings:
    """Hyper-parameters of IC-Portrait.

    strength: factor on what the nets add; 0 is off. light: r, the share of the style picture's pixels that the nets
    see (Eq. 1). alpha, beta: of Eq. 7. flow: who says where each place of the face lies in the profile: the five
    landmarks of both pictures; the matching net, once for all levels (shared) or for each by itself (layer, the
    paper's letter); or nobody, and nothing is warped. seed: of the shown pixels and of the profile's noise, which never
    touch the sampler's. start_percent, end_percent: where in the sampling the nets act, 0 is the first step.
    """

    strength: float = 1.0
    light: float = 0.1
    alpha: float = 0.8
    beta: float = 0.2
    flow: FlowSource = "landmarks"
    seed: int = 0
    start_percent: float = 0.0
    end_percent: float = 1.0

    def __post_init__(self) -> None:
        """ComfyUI 0.3.75 lets any text through where a V3 node offers a choice. Raises: ValueError with the choices."""
        if self.flow not in get_args(FlowSource):
            known = ", ".join(get_args(FlowSource))
            raise ValueError(f"IC-Portrait has no flow {self.flow!r}; choose one of {known}.")

    @property
    def off(self) -> bool:
        """Nothing to add at any step."""
        return self.strength <= 0 or self.end_percent <= self.start_percent


def passes_of(text: str) -> tuple[float, ...]:
    """The noise strength of each pass of progressive inference: "0.7, 0.5, 0.35".

    Raises: ValueError with one sentence for what is no such list.
    """
    parts = [part.strip() for part in text.split(",")]
    try:
        strengths = tuple(float(part) for part in parts)
    except ValueError:
        strengths = ()
    if not 1 <= len(strengths) <= MOST_PASSES or not all(0 < each <= 1 for each in strengths):
        raise ValueError(
            f'The passes are "{text}", but must be 1 to {MOST_PASSES} noise strengths above 0 and up to 1, such as '
            "0.7, 0.5, 0.35."
        )
    return strengths
