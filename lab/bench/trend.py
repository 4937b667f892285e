"""Whether a series of memory readings rises: from one end to the other, and a little at a time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trend:
    """One kind of memory after the warm-up. start, end: MiB, medians of the first and of the last fifth. The others are
    MiB per 100 prompts. line, error: the least-squares slope and its standard error. slope, low, high: Theil and Sen's
    and its 95% interval."""

    start: float
    end: float
    line: float
    error: float
    slope: float
    low: float
    high: float

    @property
    def growth(self) -> float:
        return self.end - self.start


def warm_up(count: int) -> int:
    """Of so many prompts, those that are left out at the start: models are loaded and caches filled."""
    return max(count // 5, 1)


def trend(names: Sequence[str], values: Sequence[float]) -> Trend:
    """Of one value a prompt, MiB; prompts of a name are alike."""
    fifth = warm_up(len(names))
    kinds: dict[str, list[tuple[int, float]]] = {}
    for number in range(fifth, len(names)):
        kinds.setdefault(names[number], []).append((number, values[number]))
    ends = (statistics.median(values[fifth : 2 * fifth] or values), statistics.median(values[-fifth:]))
    groups = [np.array(points) for points in kinds.values()]
    return Trend(*ends, *(100 * each for each in (*least_squares(groups), *theil_sen(groups))))


def least_squares(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """Slope and standard error of parallel lines through several (number, value) tables."""
    x, y = np.concatenate([np.zeros((0, 2)), *(points - points.mean(0) for points in groups)]).T
    free = len(x) - len(groups) - 1
    if free < 1:
        return math.nan, math.inf
    slope = (x @ y) / (x @ x)
    return slope, math.sqrt(((y - slope * x) ** 2).sum() / free / (x @ x))


def theil_sen(groups: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """Median of the slopes within several (number, value) tables, and its 95% interval.

    This is Hirsch, Slack and Smith's estimator for series with seasons, with the interval that the variance of
    Kendall's statistic gives; infinite where there are too few.
    """
    slopes, variance = [], 0.0
    for points in groups:
        first, second = np.triu_indices(len(points), 1)
        across, up = (points[second] - points[first]).T
        slopes.append(up / across)
        variance += len(points) * (len(points) - 1) * (2 * len(points) + 5) / 18
    ordered = np.sort(np.concatenate([*slopes, []]))
    middle, reach = len(ordered) / 2, 1.96 * math.sqrt(variance) / 2
    low, high = math.floor(middle - reach) - 1, math.ceil(middle + reach)
    if low < 0 or high >= len(ordered):
        return math.nan, -math.inf, math.inf
    return float(np.median(ordered)), ordered[low], ordered[high]
