"""Self-attention that also sees a reference's tokens, some of a picture's tokens only, and counts them as wished.

    softmax([q k^T, q k_ref^T + log(strength)]) [v; v_ref]

A reference counted n times is the same as n copies of its tokens, so strength is continuous and 1 is plain appending.
"""

from __future__ import annotations

import math

import torch


def reference_bias(inside: torch.Tensor | None, counts: list[int], strength: float, own: int) -> torch.Tensor | None:
    """What is added to the logits: float32 [B, 1, N, own + sum(counts)], or None where it would be all zeros.

    inside: boolean [B, K, N], which of the picture's N tokens see each of the K references; None: all see all.
    counts: how many tokens each reference has. own: how many keys the picture has itself, which stay as they are.
    """
    if inside is None and strength == 1:
        return None
    if inside is None:
        bias = torch.zeros(1, 1, 1, own + sum(counts))
        bias[..., own:] = math.log(strength)
        return bias
    seen = torch.full(inside.shape, -math.inf, device=inside.device).masked_fill(inside, math.log(strength))
    parts = [seen[:, k, :, None].expand(-1, -1, count) for k, count in enumerate(counts)]
    zeros = torch.zeros(len(inside), inside.shape[-1], own, device=inside.device)
    return torch.cat([zeros, *parts], dim=-1)[:, None]


def tokens_inside(mask: torch.Tensor, size: tuple[int, int], share: float = 0.4) -> torch.Tensor:
    """Boolean [B, h * w] of a grid's tokens that lie in a soft mask [B, H, W]: at least `share` of each is covered."""
    cells = torch.nn.functional.adaptive_avg_pool2d(mask[:, None].float().cpu(), size)  # Metal pools divisible sizes
    return (cells >= share).flatten(1)
