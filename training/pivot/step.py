"""One micro-batch through Eq. 5: what is random about a sample, its inputs, its losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...guidance.omniportrait import objective as loss
from ..base import Base
from ..data.index import BadSample
from ..data.latents import latents_of
from ..data.plan import Slot
from ..data.samples import Sample
from ..loop import seeded
from ..task import Losses
from .config import Objective


@dataclass(frozen=True, eq=False)
class Inputs:
    """A micro-batch on the CPU. latents: [B, C, h, w]. masks: [B, h, w]. faces: [B, 3, S, S]. rows: [B, 77, D].
    pooled: [B, P]. columns: m of each. weights: [B], 0 for bad samples. problems: their reasons by number."""

    latents: torch.Tensor
    masks: torch.Tensor
    faces: torch.Tensor
    rows: torch.Tensor
    pooled: torch.Tensor
    columns: list[int]
    weights: torch.Tensor
    slots: list[Slot]
    problems: dict[int, str]


@dataclass(frozen=True, eq=False)
class Draw:
    """What chance decides for each sample. noise: [B, C, h, w]; timesteps: [B]; the others boolean [B]."""

    noise: torch.Tensor
    timesteps: torch.Tensor
    without_both: torch.Tensor
    without_id: torch.Tensor
    face_only: torch.Tensor


def gather(samples: Sequence[Sample], base: Base) -> Inputs:
    """Tensors of a micro-batch, from the cache or computed now."""
    empty, problems = base.empty_text(), {}
    rows, pooled, columns, weights = [], [], [], []
    for sample in samples:
        text, problem = empty, sample.problem
        if sample.ready is not None:
            rows.append(sample.ready["rows"].float())
            pooled.append(sample.ready["pooled"].float())
            columns.append(int(sample.ready["column"]))
        else:
            try:
                text = text if problem else base.text(sample.caption, sample.subject, sample.occurrence)
            except BadSample as bad:
                problem = str(bad)
            rows.append(text.rows)
            pooled.append(text.pooled)
            columns.append(text.column)
        if problem:
            problems[sample.slot.sample] = problem
        weights.append(0.0 if problem else sample.weight)
    latents = latents_of(samples, tuple(samples[0].mask.shape), weights, base)
    return Inputs(
        latents, torch.stack([s.mask for s in samples]), torch.stack([s.face for s in samples]), torch.stack(rows),
        torch.stack(pooled), columns, torch.tensor(weights), [s.slot for s in samples], problems,
    )  # fmt: skip


def timestep(timesteps: int, kind: str, random: torch.Generator) -> torch.Tensor:
    """t [] of one sample, a whole number below `timesteps`, T.

    "uniform": the paper's. "noisy": floor(T sqrt(u)), so that t < k has the chance (k / T)^2 and t itself (2 t + 1) /
    T^2. At a small t the noisy picture shows who it is, so the denoiser needs no word for it and the embedding learns
    little; where noise hides the person it has to be told. No importance weight undoes the draw: that would give the
    gradient of the uniform one again, and the other weighting of Eq. 5's expectation over t is what is wanted.
    """
    if kind == "uniform":
        return torch.randint(timesteps, (), generator=random)
    u = float(torch.rand((), generator=random))  # of 24 bits, so that its root in double precision stays below 1
    return torch.tensor(int(timesteps * math.sqrt(u)))


def draw(inputs: Inputs, timesteps: int, objective: Objective, seed: int) -> Draw:
    """Chance, from the run's seed and each sample's epoch and position alone; t as `timestep` draws it."""
    noise, times, values = [], [], []
    for slot, latent in zip(inputs.slots, inputs.latents, strict=True):
        random = seeded(seed, slot.epoch, slot.position, "noise")
        times.append(timestep(timesteps, objective.timesteps, random))
        values.append(torch.rand(3, generator=random))
        noise.append(torch.randn(latent.shape, generator=random))
    both, alone, inside = torch.stack(values).T
    chances = objective.drop_both, objective.drop_id, objective.face_only
    both, alone, inside = (value < chance for value, chance in zip((both, alone, inside), chances, strict=True))
    return Draw(torch.stack(noise), torch.stack(times), both, alone & ~both, inside)


Encoder = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(faces [B, 3, S, S], e_txt [B, D]) to e_mix [B, D]: a PivotEncoder, or accelerate's wrapper of one."""


def conditioned(encoder: Encoder, inputs: Inputs, chance: Draw, base: Base) -> tuple[torch.Tensor, torch.Tensor]:
    """C of Eq. 5: rows [B, 77, D] with e_mix at m, and the pooled text; without the ID, or without both, by chance."""
    device = base.device
    rows, faces = inputs.rows.to(device), inputs.faces.to(device)
    batch, columns = torch.arange(len(rows), device=device), torch.tensor(inputs.columns, device=device)
    text = rows[batch, columns]
    mixed = encoder(faces, text).to(rows)
    kept = ~(chance.without_both | chance.without_id).to(device)[:, None]
    with_id = rows.index_put((batch, columns), torch.where(kept, mixed, text))
    empty, both = base.empty_text(), chance.without_both.to(device)
    rows = torch.where(both[:, None, None], empty.rows.to(rows), with_id)
    pooled = inputs.pooled.to(device)
    return rows, torch.where(both[:, None], empty.pooled.to(pooled), pooled)


def losses(encoder: Encoder, inputs: Inputs, base: Base, objective: Objective, seed: int) -> Losses:
    """Eq. 5 summed over a micro-batch. The localisation is left out where the ID was."""
    chance = draw(inputs, base.timesteps, objective, seed)
    rows, pooled = conditioned(encoder, inputs, chance, base)
    result = base.predict(inputs.latents, chance.noise, chance.timesteps, rows, pooled, inputs.columns)
    device = base.device
    noise, masks, weights = chance.noise.to(device), inputs.masks.to(device), inputs.weights.to(device)
    denoising = loss.denoising(result.noise, noise)
    if objective.face_only:
        inside = loss.denoising_in_face(result.noise, noise, masks)
        denoising = torch.where(chance.face_only.to(device), inside, denoising)
    if objective.picture_error:
        denoising = denoising * base.sigma(chance.timesteps).square().clamp(max=objective.picture_error)
    with_id = weights * ~(chance.without_both | chance.without_id).to(device)
    located = (loss.localisation(result.maps, masks, objective.maps) * with_id).sum()
    denoising = (denoising * weights).sum()
    parts = {"denoising": (denoising, weights.sum()), "localisation": (located, with_id.sum())}
    return Losses(loss.objective(denoising, located, objective.eta), parts)
