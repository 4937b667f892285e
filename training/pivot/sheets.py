"""Pictures of what an encoder has learned: attention on known pictures, and portraits by ComfyUI's own sampler."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...models.pivot.encoder import CLIP_MEAN, CLIP_STD, PivotEncoder
from ...sampling.heat_map import heat_map
from ..base import Base
from ..data.plan import Slot
from ..data.samples import Sample, Samples, crop_window, decode, fit
from .config import Config, Objective
from .step import Inputs, conditioned, draw, gather

ALWAYS = Objective(drop_both=0.0, drop_id=0.0)
LOOKS = (100, 300, 500, 700)
"""Timesteps (of 1000) over which attention is averaged."""
SAMPLER, SCHEDULER = "dpmpp_2m_sde", "karras"


def fixed_samples(samples: Samples, count: int) -> list[Sample]:
    """The first usable samples, without augmentation."""
    plain = Samples(samples.entries, samples.homes, samples.data, None, samples.side, samples.seed, samples.ready)
    found: list[Sample] = []
    for number in range(len(plain.entries)):
        sample = plain[Slot(number, -1, number)]
        if not sample.problem and (not found or sample.mask.shape == found[0].mask.shape):
            found.append(sample)
        if len(found) == count:
            break
    return found


@torch.no_grad()
def attention(base: Base, encoder: PivotEncoder, inputs: Inputs, seed: int = 0) -> torch.Tensor:
    """A_t(m) [B, h, w] of e_mix on noised pictures, each divided by its maximum, mean over LOOKS."""
    chance = draw(inputs, base.timesteps, ALWAYS, seed)
    rows, pooled = conditioned(encoder, inputs, chance, base)
    maps = []
    for look in LOOKS:
        times = torch.full((len(rows),), look * base.timesteps // 1000)
        found = base.predict(inputs.latents, chance.noise, times, rows, pooled, inputs.columns).maps
        maps.append(found / found.amax((1, 2), keepdim=True).clamp_min(1e-12))
    return torch.stack(maps).mean(0).cpu()


@torch.no_grad()
def portraits(
    base: Base, encoder: PivotEncoder, inputs: Inputs, steps: int = 25, cfg: float = 5.0, seed: int = 0
) -> torch.Tensor:
    """Pictures [B, 3, H, W] in 0..1 of the captions with e_mix in them, sampled as KSampler does."""
    import comfy.sample

    chance = draw(inputs, base.timesteps, ALWAYS, seed)
    rows, pooled = conditioned(encoder, inputs, chance, base)
    rows, pooled, empty = rows.cpu(), pooled.cpu(), base.empty_text()
    base.let_go()
    made = []
    for number, latent in enumerate(torch.zeros_like(inputs.latents)):

        def entry(text: torch.Tensor, vector: torch.Tensor) -> list:
            return [[text[None], {"pooled_output": vector[None] if len(vector) else None}]]

        noise = comfy.sample.prepare_noise(latent[None], seed + number)
        result = comfy.sample.sample(
            base.model, noise, steps, cfg, SAMPLER, SCHEDULER, entry(rows[number], pooled[number]),
            entry(empty.rows, empty.pooled), latent[None], disable_pbar=True, seed=seed + number,
        )  # fmt: skip
        made.append(base.vae.decode(result)[0].movedim(-1, 0).float().cpu().clamp(0, 1))
    return torch.stack(made)


def picture_of(samples: Samples, sample: Sample) -> torch.Tensor:
    """The training picture [3, H, W] in 0..1 of a sample, also where only its latents are at hand."""
    number = sample.slot.sample
    entry, home = samples.entries[number], samples.homes[number]
    window = crop_window((entry.width, entry.height), home, entry.description()["face_box"])
    return fit(decode(entry.read(entry.picture)), window, home).float() / 255


def sheet(base: Base, encoder: PivotEncoder, samples: Samples, config: Config) -> torch.Tensor:
    """[3, rows * H, 5 * W] in 0..1: face, picture, attention, mask, portrait; one sample a row."""
    found = fixed_samples(samples, config.report_samples)
    inputs = gather(found, base)
    training = encoder.training
    encoder.eval()
    maps, made = attention(base, encoder, inputs), portraits(base, encoder, inputs, config.report_steps)
    encoder.train(training)
    rows = []
    for number, sample in enumerate(found):
        picture = picture_of(samples, sample)
        size = tuple(picture.shape[-2:])
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        heat = heat_map(maps[number][None])[0].movedim(-1, 0)
        tiles = [sample.face * deviation + mean, picture, heat, sample.mask[None].expand(3, -1, -1), made[number]]
        rows.append(torch.cat([_sized(tile, size) for tile in tiles], 2))
    return torch.cat(rows, 1)


def _sized(tile: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A tile [3, h, w] inside (H, W), its aspect kept."""
    scale = min(size[0] / tile.shape[1], size[1] / tile.shape[2])
    height, width = (max(1, round(side * scale)) for side in tile.shape[1:])
    resized = F.interpolate(tile[None].float(), (height, width), mode="nearest-exact")[0]
    left, top = (size[1] - width) // 2, (size[0] - height) // 2
    return F.pad(resized, (left, size[1] - width - left, top, size[0] - height - top))
