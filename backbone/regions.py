"""Where a call's own text is after other packs' patches on cross-attention.

Attention couple and its kin run each picture once for every region, each time with that region's text: their patches
hand the attention more rows, longer ones, or both. The own text is known again by its content.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

KEY = "omniportrait_own_text"
"""Where a block's patches tell its attention; the block's options are its own."""
SAME = 3e-3
"""Of the text's length: a weight on it makes no other text, and a pivot moves one row by more."""


class OwnText(NamedTuple):
    """rows: of the keys. columns: boolean [B, T'], those that repeat the text."""

    rows: slice
    columns: torch.Tensor


def follow_text(options: dict) -> None:
    """Have the patches on cross-attention's inputs, in a private copy of transformer_options, say what became of the
    text."""
    patches = options.get("patches", {})
    foreign = patches.get("attn2_patch")
    if not foreign:
        return

    def run(n: torch.Tensor, text: torch.Tensor, value: torch.Tensor, extra: dict) -> tuple:
        given = text
        for patch in foreign:
            n, text, value = patch(n, text, value, extra)
        if text.shape != given.shape:
            extra[KEY] = find_text(given, text, len(extra.get("uuids", (None,))))
        return n, text, value

    options["patches"] = {**patches, "attn2_patch": [run]}


def find_text(text: torch.Tensor, keys: torch.Tensor, places: int = 1) -> list[OwnText | None]:
    """Where the text of each conditioning of a call is in what became of all of them; None where it is gone.

    text: [places * B, T, D]. keys: [B * regions, T', D], regions of all conditionings in their order.
    """
    batch, tokens = len(text) // places, text.shape[1]
    copies = keys.shape[1] // tokens
    parts = keys[:, : copies * tokens].unflatten(1, (copies, tokens)).float() if copies else keys[:, None, :0].float()
    found: list[OwnText | None] = []
    start = 0
    for place in range(places):
        own = text[place * batch : (place + 1) * batch].float().flatten(1)[:, None]
        for first in range(start, len(keys) - batch + 1, batch) if copies else ():
            same = _same(own, parts[first : first + batch].flatten(2))
            if same.any(dim=1).all():
                columns = torch.zeros(batch, keys.shape[1], dtype=torch.bool, device=keys.device)
                columns[:, : copies * tokens] = same.repeat_interleave(tokens, dim=1)
                found.append(OwnText(slice(first, first + batch), columns))
                start = first + batch
                break
        else:
            found.append(None)
    return found


def _same(own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Boolean [B, copies]: which of `others` [B, copies, N] are `own` [B, 1, N] but for a weight on it."""
    weight = (own * others).sum(dim=-1, keepdim=True) / own.square().sum(dim=-1, keepdim=True).clamp_min(1e-12)
    rest = (others - weight * own).norm(dim=-1)
    return (weight[..., 0] > 0) & (rest <= SAME * others.norm(dim=-1))
