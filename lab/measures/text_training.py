"""Training the text measure on rendered portraits, roughened so that it reads generated pictures too."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from ...training.loop import Budget, descend, learning_rate, seeded
from ..learning.loop import Every, batch_indices, mixed
from ..learning.pictures import Pictures
from .text import HEADS, Classes, TextMeasure, faces, scenes

BATCH = 64
RATE = 4e-3
SMOOTHING = 0.05
REPORT_SECONDS = 20.0


def words(descriptions: Sequence[dict]) -> Classes:
    """The words that occur for each head, in alphabetical order."""
    return {head: tuple(sorted({d[head] for d in descriptions})) for head in HEADS}


def shrunk(pictures: Pictures, landmarks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What both readers see of all pictures, with landmarks [N, 5, 2]: uint8 [N, 3, 128, 128] and [N, 3, 96, 96]."""
    parts = []
    for indices in torch.arange(len(pictures)).split(64):
        some = pictures.batch(indices)[0].contiguous().float() / 255
        both = scenes(some), faces(some, list(landmarks[indices]))
        parts.append([(seen * 255).round().byte() for seen in both])
    return tuple(map(torch.cat, zip(*parts, strict=True)))


def train(
    pictures: Pictures,
    budget: Budget,
    device: torch.device,
    seed: int = 0,
    batch: int = BATCH,
    say: Callable[[str], None] = print,
) -> TextMeasure:
    """A measure trained until the budget is spent; the time that shrinking the pictures takes comes on top."""
    descriptions = [record for records in pictures.records for record in records]
    torch.manual_seed(seed)
    model = TextMeasure(words(descriptions)).to(device, memory_format=torch.channels_last).train()
    targets = {h: torch.tensor([model.index(h, d[h]) for d in descriptions], device=device) for h in HEADS}
    landmarks = torch.tensor([d["landmarks"] for d in descriptions])
    seen = shrunk(pictures, landmarks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.02)
    due = Every(REPORT_SECONDS)
    budget.start()
    while not budget.done:
        chosen = batch_indices(len(descriptions), batch, budget.step, seed)
        shown = [roughened(part[chosen], seeded(seed + 1, budget.step)).to(device) for part in seen]
        with mixed(device):
            logits = model(*(part.contiguous(memory_format=torch.channels_last) for part in shown))
        losses = [F.cross_entropy(logits[h].float(), targets[h][chosen], label_smoothing=SMOOTHING) for h in HEADS]
        rate = learning_rate(budget.share, budget.step, RATE, warmup=20)
        descend(torch.stack(losses).sum(), optimizer, rate, clip=math.inf)
        budget.tick()
        if due(budget):
            shares = " ".join(f"{head} {loss.item():.3f}" for head, loss in zip(HEADS, losses, strict=True))
            speed = budget.step * batch / budget.spent
            say(f"{budget.spent:.0f} s, step {budget.step}, {speed:.0f} pictures/s: {shares}")
    return model.cpu().eval()


def roughened(pictures: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """uint8 [B, 3, S, S] to floats in 0..1: moved, mirrored, blurred, tinted, noisy, some through JPEG.

    What a small diffusion model, its autoencoder and a detector's landmarks do to a picture, and a little more.
    """
    count, side = len(pictures), pictures.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=random)

    scale, mirror = uniform(0.9, 1.1), torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    shift, zero = uniform(-0.12, 0.12, 2), torch.zeros(count)
    transform = torch.stack([scale * mirror, zero, shift[:, 0], zero, scale, shift[:, 1]], 1).view(-1, 2, 3)
    grid = F.affine_grid(transform, [count, 3, side, side], align_corners=False)
    x = F.grid_sample(pictures.float() / 255, grid, padding_mode="border", align_corners=False)
    x = blurred(x, uniform(0, 1), random)
    x = (x - 0.5) * uniform(0.85, 1.15, 1, 1, 1) + 0.5
    x = x * uniform(0.8, 1.2, 1, 1, 1) * uniform(0.95, 1.05, 3, 1, 1)
    x = x + uniform(0, 0.05, 1, 1, 1) * torch.randn(x.shape, generator=random)
    return through_jpeg(x.clamp(0, 1), uniform(0, 1), random)


def blurred(x: torch.Tensor, draw: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Half of the pictures [B, 3, S, S] (draw [B] below 0.5) made smaller and brought back."""
    rows = draw < 0.5
    if not bool(rows.any()):
        return x
    side = x.shape[-1]
    less = int(torch.randint(side // 3, side - 8, (), generator=random))
    small = F.interpolate(x[rows], (less, less), mode="bilinear", antialias=True)
    x = x.clone()
    x[rows] = F.interpolate(small, (side, side), mode="bilinear")
    return x


def through_jpeg(x: torch.Tensor, draw: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """A quarter of the pictures [B, 3, S, S] in 0..1 (draw [B] below 0.25) encoded as JPEG and back."""
    from torchvision.io import decode_jpeg, encode_jpeg

    rows = (draw < 0.25).nonzero().flatten().tolist()
    qualities = torch.randint(30, 95, (len(rows),), generator=random).tolist()
    for row, quality in zip(rows, qualities, strict=True):
        x[row] = decode_jpeg(encode_jpeg((x[row] * 255).round().byte(), quality=quality)).float() / 255
    return x
