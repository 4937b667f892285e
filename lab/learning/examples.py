"""What the diffusion model learns from: latents and tokens, all in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...demo.autoencoder import PortraitAutoencoder
from ...training.files import digest_of, write_whole
from ...training.loop import seeded
from ..world.view import retold
from . import loop
from .pictures import Pictures, pixel_weights, to_float, weight_table
from .text import tokenize

DROPPED = 0.1
"""Share of captions left empty, for classifier-free guidance."""
TELLINGS = 6
"""Ways in which each portrait's caption is told."""


class Examples:
    """All training data in memory: `latents` half [N, 4, 32, 32], `weights` [32, 32] of mean 1, `tokens`
    [N, TELLINGS, 77], `empty` [77]. No picture is mirrored: a mole on the left cheek is not one on the right."""

    def __init__(
        self, latents: torch.Tensor, weights: torch.Tensor, records: list[dict], seed: int, least_step: int = 0
    ):
        random = np.random.default_rng(seed)
        texts = [retold(record, random) for record in records for _ in range(TELLINGS)]
        tokens = tokenize([*texts, ""])
        self.latents, self.weights, self.empty = latents, of_place(weights), tokens[-1]
        self.tokens = tokens[:-1].view(len(records), TELLINGS, -1)
        self.least_step = least_step
        self.whole = tokenize([record["caption"] for record in records])
        self.ids = torch.cat((tokens.flatten(), self.whole.flatten())).unique()

    def batch(self, size: int, step: int, seed: int) -> tuple[torch.Tensor, ...]:
        """Latents, their weights, noise, steps and tokens of one training step: a function of its number alone."""
        index = loop.batch_indices(len(self.latents), size, step, seed)
        random = seeded(seed + 1, step)
        latents = self.latents[index].float()
        tokens = self.tokens[index, torch.randint(TELLINGS, (size,), generator=random)]
        dropped = torch.rand(size, generator=random) < DROPPED
        tokens = torch.where(dropped[:, None], self.empty, tokens)
        noise = torch.randn(latents.shape, generator=random)
        spread = (torch.arange(size) + torch.rand((), generator=random)) / size  # one step from each part of the range
        steps = (self.least_step + spread * (1000 - self.least_step)).long().clamp(max=999)
        return latents, self.weights, noise, steps, tokens


def of_place(weights: torch.Tensor) -> torch.Tensor:
    """What each place counts in all pictures alike, float [32, 32] of mean 1, from what it counts in each, [N, 32, 32].

    A weight that hangs on the picture itself moves what the model learns from the mean of the pictures that a noisy one
    may come of towards those that count more: where a mole, a brow or a lip weighs twice as much as skin, it is drawn
    twice as likely as it is, again at each sampling step, and faces are strewn with marks.
    """
    return weights.float().mean(0)


def of_file(path: Path) -> str:
    """A short name for a file's content."""
    return digest_of(path)[:12]


def stamps(folder: Path, subset: str = "train") -> list[str]:
    """A name for the content of each shard, in the order of `open_pictures`: what is kept on disk is kept under it, so
    that shards rendered anew under old names do not meet what was made of the old ones."""
    return [of_file(shard) for shard in sorted(folder.glob(f"{subset}-*.tar"))]


@torch.no_grad()
def cached_latents(
    pictures: Pictures, shards: Sequence[str], vae: Path, cache: Path, device: torch.device
) -> torch.Tensor:
    """Latents of all pictures, half [N, 4, 32, 32], kept on disk under the autoencoder's and the shard's content
    (`shards`, of `stamps`), a file a shard, so that an interrupted run goes on."""
    autoencoder = PortraitAutoencoder.load(vae).to(device, memory_format=torch.channels_last)
    name, pieces = of_file(vae), []
    for start, pixels, shard in zip(pictures.starts.tolist(), pictures.pixels, shards, strict=True):
        file = cache / f"latents-{name}-{shard}-plain.npy"  # without "plain" are older ones, beside mirror images
        if not file.is_file():
            parts = []
            for indices in torch.arange(start, start + len(pixels)).split(32):
                shown = to_float(pictures.batch(indices)[0].to(device)).contiguous(memory_format=torch.channels_last)
                with loop.mixed(device):
                    parts.append(autoencoder.encode(shown).half().cpu())
            done = torch.cat(parts).numpy()
            write_whole(file, lambda out, done=done: np.save(out, done))
        pieces.append(torch.from_numpy(np.load(file)))
    return torch.cat(pieces)


def cached_weights(pictures: Pictures, shards: Sequence[str], cache: Path) -> torch.Tensor:
    """What each place of a latent counts in the loss, half [N, 32, 32] of mean 1, kept on disk under the shards'
    content and the weight of each label: a face is a tenth of the picture and most of what it is judged by."""
    told = "".join(shards).encode() + weight_table().numpy().tobytes()
    file = cache / f"weights-{hashlib.sha256(told).hexdigest()[:12]}.npy"
    if not file.is_file():
        parts = []
        for indices in torch.arange(len(pictures)).split(64):
            parts.append(torch.nn.functional.avg_pool2d(pixel_weights(pictures.batch(indices)[1]), 8)[:, 0])
        weights = torch.cat(parts)
        write_whole(file, lambda out: np.save(out, (weights / weights.mean()).half().numpy()))
    return torch.from_numpy(np.load(file))


def preview_colours(pictures: Pictures, latents: torch.Tensor) -> torch.Tensor:
    """[5, 3]: the linear map from a latent's four channels, and its bias, that comes nearest to the picture's colours
    in -1..1 at an eighth of its size. ComfyUI's quick previews use it."""
    chosen = torch.linspace(0, len(latents) - 1, min(len(latents), 128)).long()
    colours = torch.nn.functional.avg_pool2d(to_float(pictures.batch(chosen)[0]), 8).movedim(1, 3).flatten(0, 2)
    values = latents[chosen].float().movedim(1, 3).flatten(0, 2)
    return torch.linalg.lstsq(torch.nn.functional.pad(values, (0, 1), value=1.0), colours).solution
