"""Whether an encoder tells the denoiser who it is, by the objective itself: how much more the denoiser errs in a face
whose e_mix comes of a stranger's reference instead of the person's own.

All else is the same in both: the picture, its caption, the noise, the timestep, the batch. So what every picture and
every timestep has of its own falls out, and a difference is seen long before portraits show one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ...guidance.omniportrait import objective as loss
from ...training.base import Base
from ...training.pivot.sheets import ALWAYS
from ...training.pivot.step import Encoder, Inputs, conditioned, draw

TIMESTEPS = (300, 500, 700, 900)
"""Of 1000. At smaller ones the noisy picture itself shows who it is."""
BATCH = 16


@dataclass(frozen=True, eq=False)
class Pair:
    """person: the name. view: one picture of the person (batch 1), whose tower sees the person's reference.
    stranger: [3, S, S], what the tower sees instead."""

    person: str
    view: Inputs
    stranger: torch.Tensor


@torch.no_grad()
def excess(base: Base, encoder: Encoder, views: Inputs, strangers: torch.Tensor, seed: int) -> torch.Tensor:
    """[B, TIMESTEPS]: log of the error inside the true face with the stranger's reference over that with the own.

    views: whose faces are the persons' own; strangers: [B, 3, S, S] in their place. The error is the squared one of
    the noise; the predicted picture's is sigma^2 as large, which leaves the ratio as it is.
    """
    nothing_dropped = draw(views, base.timesteps, ALWAYS, seed)
    texts = [conditioned(encoder, each, nothing_dropped, base) for each in (views, replace(views, faces=strangers))]
    masks, ratios = views.masks.to(base.device), []
    for look in TIMESTEPS:
        noise = draw(views, base.timesteps, ALWAYS, seed + look).noise  # new at each, so that their chance averages out
        times = torch.full((len(noise),), look * base.timesteps // 1000)
        errors = []
        for rows, pooled in texts:  # one call each: equal texts give equal numbers, to the bit
            found = base.predict(views.latents, noise, times, rows, pooled, views.columns).noise
            errors.append(loss.denoising_in_face(found, noise.to(base.device), masks))
        ratios.append((errors[1] / errors[0]).log())
    return torch.stack(ratios, 1).cpu()


def by_person(base: Base, encoder: Encoder, pairs: Sequence[Pair], seed: int) -> dict[str, list[list[float]]]:
    """`excess` of each person's pictures: a row of TIMESTEPS for each."""
    found: dict[str, list[list[float]]] = {}
    for batch in _batches(pairs):
        strangers = torch.stack([pair.stranger for pair in batch])
        rows = excess(base, encoder, _joined([pair.view for pair in batch]), strangers, seed)
        for pair, row in zip(batch, rows.tolist(), strict=True):
            found.setdefault(pair.person, []).append(row)
    return found


def percent(logs: Mapping[str, float]) -> dict[str, float]:
    """An interval of logs of ratios as per cent above 1: its mean is the geometric mean's."""
    return dict(logs) | {name: 100 * math.expm1(logs[name]) for name in ("mean", "low", "high")}


def _batches(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Of pictures of one size."""
    sizes: dict[torch.Size, list[Pair]] = {}
    for pair in pairs:
        sizes.setdefault(pair.view.latents.shape, []).append(pair)
    for same in sizes.values():
        yield from (same[i : i + BATCH] for i in range(0, len(same), BATCH))


def _joined(views: Sequence[Inputs]) -> Inputs:
    names = ("latents", "masks", "faces", "rows", "pooled", "weights")
    tensors = {name: torch.cat([getattr(view, name) for view in views]) for name in names}
    columns = [column for view in views for column in view.columns]
    return Inputs(**tensors, columns=columns, slots=[slot for view in views for slot in view.slots], problems={})
