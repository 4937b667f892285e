"""Self-attention that also sees a reference's tokens, some of a picture's tokens only, and counts them as wished.

    softmax([q k^T, q k_1^T + log(strength / K), ..., q k_K^T + log(strength / K)]) [v; v_1; ...; v_K]

for K photographs of the reference. One counted n times is the same as n copies of its tokens, so strength is continuous
and 1 is plain appending. Under the softmax the K photographs weigh strength * mean_k sum_j exp(q k_kj): as much as one
of them on average, so that strength means the same for any number, and K times the same photograph is that photograph.
"""

from __future__ import annotations

import math

import torch


def reference_bias(
    inside: torch.Tensor | None, counts: list[list[int]], strength: float, own: int
) -> torch.Tensor | None:
    """What is added to the logits: float32 [B, 1, N, own + M], or None where it would be all zeros.

    inside: boolean [B, R, N], which of the picture's N tokens see each of the R references; None: all see all.
    counts: for each reference how many tokens each of its photographs has, M in all. own: how many keys the picture has
    itself, which stay as they are.
    """
    biases = [math.log(strength / len(photographs)) for photographs in counts]
    totals = [sum(photographs) for photographs in counts]
    if inside is None and not any(biases):
        return None
    if inside is None:
        parts = [torch.full((1, 1, 1, total), bias) for bias, total in zip(biases, totals, strict=True)]
        return torch.cat([torch.zeros(1, 1, 1, own), *parts], dim=-1)
    hidden = torch.full(inside.shape, -math.inf, device=inside.device)
    seen = torch.where(inside, torch.tensor(biases, device=inside.device)[:, None], hidden)
    parts = [seen[:, r, :, None].expand(-1, -1, total) for r, total in enumerate(totals)]
    zeros = torch.zeros(len(inside), inside.shape[-1], own, device=inside.device)
    return torch.cat([zeros, *parts], dim=-1)[:, None]


def tokens_inside(mask: torch.Tensor, size: tuple[int, int], share: float = 0.4) -> torch.Tensor:
    """Boolean [B, h * w] of a grid's tokens that lie in a soft mask [B, H, W]: at least `share` of each is covered."""
    cells = torch.nn.functional.adaptive_avg_pool2d(mask[:, None].float().cpu(), size)  # Metal pools divisible sizes
    return (cells >= share).flatten(1)
