"""Eq. 4 to 6: what the tuned model is held to, outside the control map. Terms are told for each sample [B].

Both are relative: squared change over the reference's own squared size. That is ours: attention (1e-2) and queries (1)
differ by orders of magnitude, and so do layers and models, so that no fixed weight would carry over. A term is 0 where
nothing changed and about 1 where everything did.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

TINY = 1e-12


def text_consistent(
    response: torch.Tensor,
    reference: torch.Tensor,
    gate: torch.Tensor,
    base: torch.Tensor,
    rest: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Eq. 5, L_tc of one layer [B]: sum_i (1 - S(i)) a(i) / sum_i |A_ref(i)|^2.

    response, reference: attention [B, N, columns], mean over heads. gate: S at the layer's N places [B, N]. base: the
    base text's columns, boolean [B, columns]; rest: of response and reference, the end token and all that follows.
    """
    both = (compared(maps, base, each) for maps, each in zip((response, reference), rest, strict=True))
    return relative_change(*both, gate)


def compared(attention: torch.Tensor, base: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Eq. 4's columns [B, N, columns + 1]: each of the base text by itself, and the sum over the rest, whose number
    differs between the paths. The target's own columns are left out."""
    one, other = base[:, None].to(attention), rest[:, None].to(attention)
    return torch.cat([attention * one, (attention * other).sum(-1, keepdim=True)], -1)


def fine_grained(response: torch.Tensor, reference: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Eq. 6, L_fg of one layer [B]: sum_i (1 - S(i)) |Q_res(i) - Q_ref(i)|^2 / sum_i |Q_ref(i)|^2.

    response, reference: queries of cross-attention [B, N, D]. gate: S [B, N].
    """
    return relative_change(response, reference, gate)


def relative_change(response: torch.Tensor, reference: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """[B] of [B, N, D]: the squared change where the gate [B, N] is shut, over the reference's squares."""
    reference = reference.detach().float()
    change = (response.float() - reference).square().sum(-1)
    return ((1 - gate.detach()) * change).sum(-1) / reference.square().sum((-2, -1)).clamp_min(TINY)


def at_layer(gate: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """S [B, h, w] at a layer's places [B, h' w']: the mean over each cell."""
    return F.interpolate(gate[:, None], size, mode="area").flatten(1)
