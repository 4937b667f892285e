"""Training the autoencoder: faithful where faces are, with latents that a small diffusion model finds easy."""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from ...demo.autoencoder import CHANNELS, PortraitAutoencoder
from ...training.files import halved, write_tensors
from ...training.loop import Average, descend, learning_rate, seeded
from . import loop
from .loop import Budget, budget_of
from .pictures import Pictures, pixel_weights, to_float

NOISE = 0.08
"""Largest deviation of the noise on the unit-variance latents in training: a smooth decoder forgives small errors."""
ROUGHNESS = 0.1
"""Weight of the latents' roughness. Unit variance alone lets edges take most of it, and noise then hides what is large
and plain, such as the colour of a face, which a diffusion model should decide first."""


def weighted_loss(difference: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """L1 of the difference [B, 3, H, W], of its gradients, and of its mean over 4x4 pixels, by weights [B, 1, H, W].

    A difference's gradient is the difference of gradients, so sharp edges and fine marks count twice.
    """

    def mean(values: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return (values.abs() * at).sum() / (at.sum() * values.shape[1])

    across = difference[..., 1:] - difference[..., :-1]
    down = difference[..., 1:, :] - difference[..., :-1, :]
    gradients = mean(across, weights[..., 1:]) + mean(down, weights[..., 1:, :])
    return mean(difference, weights) + gradients + 0.5 * mean(avg_pool2d(difference, 4), avg_pool2d(weights, 4))


def roughness(latents: torch.Tensor) -> torch.Tensor:
    """Mean square of the difference between neighbours; 2 for unit-variance noise, 0 for a constant."""
    across, down = latents.diff(dim=-1).square().mean(), latents.diff(dim=-2).square().mean()
    return (across + down) / 2


class Trainer(nn.Module):
    """The autoencoder and the running statistics that keep its latents at unit variance while it trains."""

    def __init__(self, autoencoder: PortraitAutoencoder):
        super().__init__()
        self.autoencoder = autoencoder
        self.normal = nn.BatchNorm2d(CHANNELS, affine=False, momentum=0.02)

    def loss(self, pictures: torch.Tensor, weights: torch.Tensor, noise: torch.Tensor) -> dict[str, torch.Tensor]:
        """`noise` [B, 4, h, w] is added to the latents. Half of the batch is also decoded from latents at half size,
        which should give the picture at half size: latents that scale like pictures suit diffusion (EQ-VAE's idea)."""
        with loop.mixed(pictures.device):
            latents = self.autoencoder.encode(pictures)
        latents = self.normal(latents.float())
        half = latents[: max(1, len(latents) // 2)]
        with loop.mixed(pictures.device):
            whole = self.autoencoder.decode(latents + noise)
            small = self.autoencoder.decode(avg_pool2d(half, 2))
        exact = weighted_loss(whole.float() - pictures, weights)
        scaled = weighted_loss(
            small.float() - avg_pool2d(pictures[: len(half)], 2), avg_pool2d(weights[: len(half)], 2)
        )
        rough = roughness(latents)
        return {"total": exact + 0.25 * scaled + ROUGHNESS * rough, "exact": exact, "scaled": scaled, "rough": rough}


def train(options: argparse.Namespace, pictures: Pictures) -> None:
    """Train to the end of the budget, or of this piece of it, and write `options.out` at each save."""
    device = loop.pick_device(options.device)
    torch.manual_seed(options.seed)
    trainer = Trainer(PortraitAutoencoder()).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(trainer.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
    average = Average(list(trainer.parameters()), 0.998)
    budget = budget_of(options)
    parts = {"trainer": trainer, "optimizer": optimizer, "average": average}
    state = loop.State(options.out, budget, parts, loop.recipe(options, pictures))
    if not options.restart:
        state.resume()
    log = loop.Log(options.out.with_suffix(".log"))
    log.say(f"{len(pictures)} pictures, {sum(p.numel() for p in trainer.parameters()) / 1e6:.2f}M parameters, {device}")
    loop.advance(
        budget, log, options.batch, optimizer, average,
        lambda: step(trainer, optimizer, pictures, budget, options, device),
        lambda: finish(trainer, average, pictures, state, options, device),
        line_seconds=20, save_seconds=240,
    )  # fmt: skip


def step(
    trainer: Trainer,
    optimizer: torch.optim.Optimizer,
    pictures: Pictures,
    budget: Budget,
    options: argparse.Namespace,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """One optimiser step; what it sees depends on the step's number alone."""
    rate = learning_rate(budget.share, budget.step, options.rate)
    pixels, labels = pictures.batch(loop.batch_indices(len(pictures), options.batch, budget.step, options.seed))
    random = seeded(options.seed + 1, budget.step)
    if torch.rand((), generator=random) < 0.5:
        pixels, labels = pixels.flip(-1), labels.flip(-1)
    size = pixels.shape[-1] // 8
    noise = torch.randn(len(pixels), CHANNELS, size, size, generator=random)
    noise = noise * NOISE * torch.rand(len(pixels), 1, 1, 1, generator=random)
    shown = to_float(pixels.to(device)).contiguous(memory_format=torch.channels_last)
    losses = trainer.loss(shown, pixel_weights(labels.to(device)), noise.to(device))
    descend(losses["total"], optimizer, rate)
    return losses


def finish(
    trainer: Trainer,
    average: Average,
    pictures: Pictures,
    state: loop.State,
    options: argparse.Namespace,
    device: torch.device,
) -> None:
    """Save the state, the averaged weights as the result, and a sheet of pictures over their reconstructions."""
    state.save()
    average.swap()
    result = exported(trainer.autoencoder, pictures, device)
    average.swap()
    write_tensors(options.out, halved(result.state_dict()))
    chosen = torch.linspace(0, len(pictures) - 1, 8).long()
    shown = to_float(pictures.batch(chosen)[0].to(device))
    with torch.no_grad():
        again = result.decode(result.encode(shown))
    loop.sheet(torch.cat((shown, again)), 8, options.out.with_suffix(".png"))


@torch.no_grad()
def exported(autoencoder: PortraitAutoencoder, pictures: Pictures, device: torch.device) -> PortraitAutoencoder:
    """A copy whose `encode` itself gives unit variance and zero mean over a sample of the pictures."""
    result = PortraitAutoencoder.shaped_like(autoencoder.state_dict()).to(device, memory_format=torch.channels_last)
    result.load_state_dict(autoencoder.state_dict())
    chosen = torch.linspace(0, len(pictures) - 1, min(len(pictures), 256)).long()
    latents = torch.cat([result.encode(to_float(pictures.batch(part)[0].to(device))) for part in chosen.split(32)])
    result.fold_statistics(latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    return result


def arguments() -> argparse.ArgumentParser:
    """What `run.py make vae` takes."""
    parser = argparse.ArgumentParser(prog="run.py make vae", description=__doc__, allow_abbrev=False)
    loop.add_arguments(parser, minutes=25.0, batch=16, rate=1.5e-3)
    return parser
