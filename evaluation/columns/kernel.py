"""KID: the squared distance of two sets in the space of a cubic kernel (Binkowski et al., 2018), over all pictures.

It is unbiased, whatever the number of pictures, so its interval can come from leaving out one person after the other:
resampling with replacement would put a picture beside itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..intervals import Interval

ROWS = 1000
"""Of the kernel's matrix, in memory at once."""


def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def kernel_distance(mine: np.ndarray, people: Sequence[str], real: np.ndarray) -> Interval:
    """mine: [N, D], of `people`; real: [M, D]. The interval is of the people, not of the real pictures."""
    names = sorted(set(people))
    of = np.array([[name == each for each in people] for name in names], float)
    counts = of.sum(1)
    inner, across = within(mine, of), of @ np.concatenate([kernel(rows, real).sum(1) for rows in parts(mine)])
    everybody = np.ones((1, len(real)))
    spread = within(real, everybody)[0, 0] / (len(real) * (len(real) - 1))

    def value(there: np.ndarray) -> float:
        count = counts[there].sum()
        if count < 2:
            return float("nan")
        pairs = inner[np.ix_(there, there)].sum() / (count * (count - 1))
        return float(pairs + spread - 2 * across[there].sum() / (count * len(real)))

    whole = value(np.ones(len(names), bool))
    without = np.array([value(np.arange(len(names)) != left) for left in range(len(names))])
    reach = jackknife(without)
    return Interval(whole, whole - reach, whole + reach, len(names))


def within(features: np.ndarray, of: np.ndarray) -> np.ndarray:
    """[P, P] sums of the kernel over pairs of two different pictures, by whose they are."""
    total, at = np.zeros((len(of), len(of))), 0
    for rows in parts(features):
        values = kernel(rows, features)
        values[np.arange(len(rows)), at + np.arange(len(rows))] = 0
        total += of[:, at : at + len(rows)] @ values @ of.T
        at += len(rows)
    return total


def parts(features: np.ndarray) -> list[np.ndarray]:
    return [features[at : at + ROWS] for at in range(0, len(features), ROWS)]


def jackknife(without: np.ndarray) -> float:
    """Half of the 95% interval of a number from its values without one person each."""
    from scipy.stats import t

    count = len(without)
    if count < 2:
        return float("nan")
    variance = (count - 1) / count * ((without - without.mean()) ** 2).sum()
    return float(t.ppf(0.975, count - 1) * np.sqrt(variance))
