"""Pictures of what a run has learned: the original and the tuned model side by side, and the control map."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F

from ...guidance.spf_portrait import control_map
from ...sampling.heat_map import heat_map
from ..base import Base
from . import lora_file
from .config import Config
from .dual_path import DualPath, coarse_attention
from .pictures import Pictures, first_samples, seen
from .step import BASE, COMPLETE, Inputs, Text, draw, gather

LOOK = 400
"""Timestep (of 1000) at which the control map is shown."""
SAMPLER, SCHEDULER, CFG = "dpmpp_2m", "karras", 4.0


def sheet(base: Base, model: DualPath, state: lora_file.Tensors, pictures: Pictures, config: Config) -> torch.Tensor:
    """[3, rows * H, 7 * W] in 0..1, one sample a row: training picture | original, base text | tuned, complete text |
    tuned, base text | N | what the phrases take away | S. The three portraits begin with the same noise."""
    found = first_samples(pictures, config.report_samples)
    inputs = gather(found, pictures, base)
    maps = control_maps(base, model, inputs, config)
    base.let_go()
    tuned = lora_file.patched(base.model, state)
    portraits = [
        sampled(base, each, inputs.texts[text], inputs.latents, config.report_steps)
        for each, text in ((base.model, BASE), (tuned, COMPLETE), (tuned, BASE))
    ]
    rows = []
    for number, sample in enumerate(found):
        picture = seen(pictures, sample)
        size = tuple(picture.shape[-2:])
        heats = [heat_map(_sized(each[number][None], size))[0].movedim(-1, 0) for each in maps]
        rows.append(torch.cat([picture, *(made[number] for made in portraits), *heats], 2))
    return torch.cat(rows, 1)


@torch.no_grad()
def control_maps(base: Base, model: DualPath, inputs: Inputs, config: Config) -> tuple[torch.Tensor, ...]:
    """N, sum_p D_p M_p and S of training pictures noised to LOOK, each [B, h, w]."""
    chance = draw(inputs, base.timesteps, config.objective, config.seed)
    chance = replace(chance, timesteps=torch.full_like(chance.timesteps, LOOK * base.timesteps // 1000))
    reference, response = model.both(inputs, chance)
    settings, keys = config.objective.control, model.coarse(inputs)
    noise = control_map.difference(response.noise, reference.noise, settings.blur, settings.floor)
    looks = [coarse_attention(each.recording, keys) for each in (reference, response)]
    taken, kept = torch.zeros_like(noise), torch.zeros_like(noise)
    for i in range(len(noise)):
        states = inputs.texts[COMPLETE].rows[i].to(noise.device)
        kept[i], maps, distances = control_map.fine_control(
            noise[i], looks[0][i], looks[1][i], states, inputs.phrases[i], inputs.targets[i], settings
        )
        taken[i] = (distances[:, None, None] * maps).sum(0)
    return noise.cpu(), taken.cpu(), kept.cpu()


@torch.no_grad()
def sampled(base: Base, patcher: object, text: Text, latents: torch.Tensor, steps: int) -> torch.Tensor:
    """Pictures [B, 3, H, W] in 0..1 of the texts as KSampler makes them, each with a seed of its own."""
    import comfy.sample

    empty, made = base.empty_text(), []
    base.let_go()
    for number in range(len(latents)):

        def entry(rows: torch.Tensor, pooled: torch.Tensor) -> list:
            return [[rows[None], {"pooled_output": pooled[None] if len(pooled) else None}]]

        blank = torch.zeros_like(latents[number : number + 1])
        noise = comfy.sample.prepare_noise(blank, number)
        result = comfy.sample.sample(
            patcher, noise, steps, CFG, SAMPLER, SCHEDULER, entry(text.rows[number], text.pooled[number]),
            entry(empty.rows, empty.pooled), blank, disable_pbar=True, seed=number,
        )  # fmt: skip
        made.append(base.vae.decode(result)[0].movedim(-1, 0).float().cpu().clamp(0, 1))
    return torch.stack(made)


def _sized(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(maps[:, None], size, mode="nearest")[:, 0]
