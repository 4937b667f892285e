"""Cross-attention that looks at the noun: a step without training, by least squares.

A small model trained on captions writes what it has read into the states behind the last word and reads it there: on
faces the noun had 1 to 5% of the attention and the 60 states behind the caption 80%. What is said in the noun's place,
by a pivot encoder or a learned word, then goes through a fiftieth of the attention, and so does its gradient. This adds
a rank-one term to each layer's keys, by which the noun gets a wanted share on faces, and one to its values, by which it
gives there what attention gave before, so that the pictures stay what they were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from comfy.ldm.modules.attention import attention_basic
from torch import nn

from .words import noun_columns

if TYPE_CHECKING:
    from .denoising import Denoiser

LEVELS = (300, 600, 880)
"""Steps of 1000 at which queries are collected."""
LEAST, MOST = -2.0, 8.0
"""By how much a logit is asked to change."""
RIDGE = 1e-2


@torch.no_grad()
def look_at_nouns(
    model: Denoiser, latents: torch.Tensor, faces: torch.Tensor, tokens: torch.Tensor, share: float, seed: int = 0
) -> None:
    """Change `model` in place, so that noun states get about `share` (0..1) of the attention of queries on faces.

    latents: [N, 4, h, w] of some portraits; faces: [N, 1, H, W], 1 on a face; tokens: [N, 77] of their captions.
    """
    states, columns = model.text(tokens), noun_columns(tokens)
    rows = torch.arange(len(tokens), device=tokens.device)
    reads = noun_direction(states, columns)
    layers = [layer for name, layer in model.unet.named_modules() if name.endswith("attn2")]
    wanted = [Wanted() for _ in layers]
    random = torch.Generator().manual_seed(seed)
    for level in LEVELS:
        noise = torch.randn(latents.shape, generator=random).to(latents)
        sigma = model.sigmas[level]
        noisy = (latents + sigma * noise) / (1 + sigma**2).sqrt()
        for part in rows.split(16):
            watch = Watch(wanted, faces[part], columns[part], share)
            at = torch.full((len(part),), level, device=latents.device)
            options = {"optimized_attention_override": watch}
            model.unet(noisy[part], at, context=states[part], transformer_options=options)
    nouns = states[rows, columns]
    for layer, found in zip(layers, wanted, strict=True):
        layer.to_k.weight += torch.outer(found.key(), reads)
        value = found.value() - (nouns @ layer.to_v.weight.T).mean(0)
        layer.to_v.weight += torch.outer(value, reads)


def noun_direction(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """[D]: what a state [N, 77, D] is multiplied with to give 1 for nouns (at `columns` [N]) and 0 for all others."""
    nouns = nn.functional.one_hot(columns, states.shape[1]).flatten().to(states)
    flat, counts = states.flatten(0, 1), torch.where(nouns > 0, 20.0, 1.0)
    square = (flat * counts[:, None]).T @ flat
    ridge = 1e-4 * square.diagonal().mean() * torch.eye(len(square)).to(square)
    return torch.linalg.solve(square + ridge, (flat * counts[:, None]).T @ nouns)


class Wanted:
    """The sums of one layer's least squares: which key, added to the noun's, changes its logits as wanted."""

    def __init__(self) -> None:
        self.square, self.right, self.values, self.weight = 0.0, 0.0, 0.0, 0.0

    def add(self, queries: torch.Tensor, change: torch.Tensor, out: torch.Tensor, face: torch.Tensor) -> None:
        """queries, out: [B, heads, Q, d]; change: [B, heads, Q]; face: [B, Q]."""
        self.square = self.square + torch.einsum("bhqd,bhqe->hde", queries, queries)
        self.right = self.right + torch.einsum("bhqd,bhq->hd", queries, change)
        self.values = self.values + torch.einsum("bhqd,bq->hd", out, face)
        self.weight = self.weight + face.sum()

    def key(self) -> torch.Tensor:
        """[heads * d]"""
        size = self.square.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1)
        ridge = RIDGE * size * torch.eye(self.square.shape[-1]).to(self.square)
        return torch.linalg.solve(self.square + ridge, self.right[..., None]).flatten()

    def value(self) -> torch.Tensor:
        """[heads * d]: what queries on faces were given, in the mean."""
        return (self.values / self.weight).flatten()


class Watch:
    """An attention of ComfyUI's that notes, layer after layer, what the noun's logits should be."""

    def __init__(self, wanted: Sequence[Wanted], faces: torch.Tensor, columns: torch.Tensor, share: float):
        self.layers, self.faces, self.columns = iter(wanted), faces, columns
        self.logit = math.log(share / (1 - share))

    def __call__(self, _, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *rest, **options):
        if q.shape[1] != k.shape[1]:  # not self-attention
            self.note(next(self.layers), *(x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)))
        return attention_basic(q, k, v, heads, *rest, **options)

    def note(self, layer: Wanted, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        queries = q / q.shape[-1] ** 0.5
        logits = queries @ k.transpose(-1, -2)
        rows = torch.arange(len(q), device=q.device)
        noun = logits[rows, :, :, self.columns]
        others = logits.clone()
        others[rows, :, :, self.columns] = -torch.inf
        side = round(q.shape[2] ** 0.5)
        face = nn.functional.interpolate(self.faces, (side, side), mode="area").flatten(1)
        change = (others.logsumexp(-1) + self.logit - noun).clamp(LEAST, MOST)
        layer.add(queries, face[:, None] * change, logits.softmax(-1) @ v, face)
