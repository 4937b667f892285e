"""How well a number tells two cases apart: the statistics by which the measures are calibrated."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

THRESHOLDS = Path(__file__).parents[2] / "demo" / "weights" / "measures.json"
"""What lab/make/measures.py found on held-out renders: "identity", a distance, and "detail", a contrast; and both
with "_generated", found on the same renders through the autoencoder, out of which every generated picture comes."""


@dataclass(frozen=True)
class Spread:
    """Mean and the 5 and 95% points of `count` values."""

    count: int
    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: torch.Tensor) -> Spread:
        low, high = torch.quantile(values.double(), torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
        return cls(len(values), values.double().mean().item(), low, high)


@dataclass(frozen=True)
class Separation:
    """`low` and `high`: the case whose values should be lower, and the other. `threshold` lies between them where the
    mean of both cases' shares of right answers, `accuracy`, is highest."""

    low: Spread
    high: Spread
    auc: float
    threshold: float
    accuracy: float

    @classmethod
    def of(cls, low: torch.Tensor, high: torch.Tensor) -> Separation:
        """From the values [N] and [M] of both cases, at least one of each."""
        threshold, accuracy = best_threshold(low, high)
        return cls(Spread.of(low), Spread.of(high), auc(low, high), threshold, accuracy)


def auc(low: torch.Tensor, high: torch.Tensor) -> float:
    """The share of pairs in which the value of `high` [M] is above that of `low` [N]; ties count half."""
    ordered = low.sort().values
    below = torch.searchsorted(ordered, high.contiguous())
    not_above = torch.searchsorted(ordered, high.contiguous(), right=True)
    return (below + not_above).double().mean().item() / 2 / len(low)


def best_threshold(low: torch.Tensor, high: torch.Tensor) -> tuple[float, float]:
    """Where to cut between `low` [N] and `high` [M], and the mean of both shares of right answers there."""
    values = torch.cat([low, high]).unique().double()
    cuts = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    right_low = torch.searchsorted(low.double().sort().values, cuts) / len(low)
    right_high = 1 - torch.searchsorted(high.double().sort().values, cuts) / len(high)
    accuracy = (right_low + right_high) / 2
    best = accuracy.argmax()
    return cuts[best].item(), accuracy[best].item()


def thresholds(file: str | Path = THRESHOLDS, generated: bool = False) -> dict[str, float]:
    """The calibrated cuts: faces nearer than "identity" are one person, a contrast above "detail" is a mole. Those of
    renders, or those of `generated` pictures: an autoencoder takes away much of a mole. SystemExit if they are not
    there."""
    known, ending = json.loads(Path(file).read_text()), "_generated" if generated else ""
    try:
        return {name: known[name + ending] for name in ("identity", "detail")}
    except KeyError as missing:
        raise SystemExit(f"{file} holds no {missing}: write it anew by `python run.py make measures`.") from None
