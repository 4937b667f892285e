"""One micro-batch: its tensors, and what is random about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..base import Base
from ..data.index import BadSample
from ..data.latents import latents_of
from ..data.plan import Slot
from ..loop import seeded
from .config import Objective
from .pictures import Pictures, Sample

COMPLETE, BASE, NOTHING, EARLIER = range(4)
"""What text the response path reads. The reference path reads the base text, or on the null path (all but COMPLETE) the
same as the response path."""


@dataclass(frozen=True, eq=False)
class Text:
    """rows: [B, 77, D]. pooled: [B, P] or [B, 0]. counts: how many columns the text has, from 1 on, [B]."""

    rows: torch.Tensor
    pooled: torch.Tensor
    counts: torch.Tensor


@dataclass(frozen=True, eq=False)
class Inputs:
    """A micro-batch on the CPU. latents: [B, C, h, w]. texts: by what they are (COMPLETE, …). wanted: targets' words.
    targets, phrases: columns of each. places: [B, h, w], where the attribute is, or nan. The rest as of
    training.task.Inputs."""

    latents: torch.Tensor
    texts: dict[int, Text]
    wanted: list[str]
    targets: list[tuple[int, int]]
    phrases: list[list[tuple[int, int]]]
    places: torch.Tensor
    weights: torch.Tensor
    slots: list[Slot]
    problems: dict[int, str]


@dataclass(frozen=True, eq=False)
class Draw:
    """What chance decides for each sample. noise: [B, C, h, w]. timesteps: [B]. dropped: boolean [B], no text in stage
    1. path: [B], which text the response path of stage 2 reads."""

    noise: torch.Tensor
    timesteps: torch.Tensor
    dropped: torch.Tensor
    path: torch.Tensor


def gather(samples: Sequence[Sample], pictures: Pictures, base: Base) -> Inputs:
    """Tensors of a micro-batch, from the cache or computed now."""
    problems, found, weights = {}, [], []
    for sample in samples:
        problem, states = sample.problem, sample.ready
        if states is None and not problem:
            try:
                states = pictures.states(base, sample)
            except BadSample as bad:
                problem = str(bad)
        if problem:
            problems[sample.slot.sample] = problem
        found.append(_no_text(base) if problem else states)
        weights.append(0.0 if problem else sample.weight)
    latents = latents_of(samples, tuple(samples[0].place.shape), weights, base)
    columns = torch.stack([each["columns"] for each in found])
    texts = {
        COMPLETE: _text(found, "", columns[:, 1] - 1),
        BASE: _text(found, "base_", columns[:, 0]),
        NOTHING: _nothing(base, len(found)),
    }
    if all("earlier_rows" in each for each in found):
        texts[EARLIER] = _text(found, "earlier_", torch.stack([each["earlier_count"] for each in found]))
    return Inputs(
        latents, texts, [sample.target for sample in samples], [tuple(row) for row in columns[:, 2:].tolist()],
        [[tuple(span) for span in each["phrases"].tolist()] for each in found],
        torch.stack([sample.place for sample in samples]), torch.tensor(weights), [s.slot for s in samples], problems,
    )  # fmt: skip


def _text(found: Sequence[dict], name: str, counts: torch.Tensor) -> Text:
    rows, pooled = (torch.stack([each[f"{name}{part}"].float() for each in found]) for part in ("rows", "pooled"))
    return Text(rows, pooled, counts)


def _nothing(base: Base, count: int) -> Text:
    empty = base.empty_text()
    return Text(empty.rows.expand(count, -1, -1), empty.pooled.expand(count, -1), torch.zeros(count, dtype=torch.long))


def _no_text(base: Base) -> dict[str, torch.Tensor]:
    """The states of a bad sample."""
    empty = base.empty_text()
    states = {f"{name}rows": empty.rows for name in ("", "base_", "earlier_")}
    states |= {f"{name}pooled": empty.pooled for name in ("", "base_", "earlier_")}
    return states | {
        "columns": torch.tensor([0, 1, 1, 2]), "phrases": torch.zeros(0, 2, dtype=torch.long),
        "earlier_count": torch.tensor(0),
    }  # fmt: skip


def draw(inputs: Inputs, timesteps: int, objective: Objective, seed: int) -> Draw:
    """Chance, from the run's seed and each sample's epoch and position alone."""
    noise, times, dropped, paths = [], [], [], []
    for slot, latent in zip(inputs.slots, inputs.latents, strict=True):
        random = seeded(seed, slot.epoch, slot.position, "noise")
        times.append(torch.randint(timesteps, (), generator=random))
        noise.append(torch.randn(latent.shape, generator=random))
        drop, null, which, earlier = torch.rand(4, generator=seeded(seed, slot.epoch, slot.position, "null")).tolist()
        dropped.append(drop < objective.drop)
        path = COMPLETE
        if null < objective.null_path:
            named = EARLIER if EARLIER in inputs.texts and earlier < objective.earlier else BASE
            path = named if which < 0.5 else NOTHING
        paths.append(path)
    return Draw(torch.stack(noise), torch.stack(times), torch.tensor(dropped), torch.tensor(paths))


def chosen(texts: dict[int, Text], path: torch.Tensor) -> Text:
    """Each sample's text by its path [B]."""
    picked = [texts[which] for which in path.tolist()]
    parts = zip(*((text.rows[i], text.pooled[i], text.counts[i]) for i, text in enumerate(picked)), strict=True)
    return Text(*map(torch.stack, parts))
