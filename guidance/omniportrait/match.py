"""Which points of two faces belong together, and how alike they are.

Points are diffusion features [N, C]. The search has no gradient; the cosine's flows only into the features of the
picture being made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .settings import Reduction


@torch.no_grad()
def nearest(reference: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """Eq. 7: for each reference point the index of the generated point at the smallest Euclidean distance.

    The paper prints p in M^ref under the argmin but says that matches lie inside M_gen; `generated` holds the points of
    M_gen. |a - b|^2 = |a|^2 + |b|^2 - 2ab, and |a|^2 is the same for all candidates, so it is left out.
    """
    distance = generated.square().sum(dim=1)[None, :] - 2 * reference @ generated.T
    return distance.argmin(dim=1)


@torch.no_grad()
def most_alike(photographs: Sequence[torch.Tensor], generated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of several photographs [N, C] of one person the one with the largest mean S, and its matches by Eq. 7.

    The paper has one photograph; then nothing is compared.
    """
    pairs = [(reference, nearest(reference, generated)) for reference in photographs]
    if len(pairs) == 1:
        return pairs[0]
    return max(pairs, key=lambda pair: float(similarity(pair[0], generated, pair[1], "mean")))


def similarity(
    reference: torch.Tensor, generated: torch.Tensor, match: torch.Tensor, reduction: Reduction
) -> torch.Tensor:
    """Eq. 8: S, the sum over reference points of (cos + 1) / 2 with their matches; `mean` divides by their number."""
    halves = (F.cosine_similarity(generated[match], reference, dim=1) + 1) / 2
    return halves.mean() if reduction == "mean" else halves.sum()
