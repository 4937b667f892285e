"""Eq. 7 and Fig. 3: the warped profile is added to the lit half, fine levels more than coarse ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .flow import warp
from .masking import halves, joined


def weight(level: int, levels: int, alpha: float, beta: float) -> float:
    """W_l of Eq. 7: (1 - l / L) alpha + beta. level: l, 0 is the finest. levels: L, the last one's number."""
    return (1 - level / levels) * alpha + beta


def aggregated(
    features: Sequence[torch.Tensor], flows: Sequence[torch.Tensor | None], alpha: float, beta: float
) -> list[torch.Tensor]:
    """[P_l | R_l] at each level, with R_l = L_l + W_l warp(P_l).

    features: [P_l | L_l], each [B, C, h, 2 w], the finest first. flows: one a level (`flow.py`), of any number of
    cells; None leaves the level as it is.
    """
    last = len(features) - 1
    result = []
    for level, (both, flow) in enumerate(zip(features, flows, strict=True)):
        if flow is not None:
            profile, lit = halves(both)
            both = joined(profile, lit + weight(level, last, alpha, beta) * warp(profile, flow))
        result.append(both)
    return result
