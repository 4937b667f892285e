"""Training the measures of worn things on rendered pairs: the segmenter, and the towers that stand in for CLIP."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from ...demo.autoencoder import PortraitAutoencoder
from ...training.loop import Budget, descend, learning_rate, seeded
from ...training.spf_portrait.latent_towers import LatentTowers
from ..measures.segments import CLASSES, MAP, SIDE, WORN, WORN_CLASSES, Segmenter
from ..world.attributes import ATTRIBUTES
from ..world.identity import identity
from ..world.portrait import render
from ..world.shards import HELD_OUT, view_of
from .loop import batch_indices, mixed

HEADS = ("subject", "expression", "garment", "colour", "background")
"""Words of a caption that have a vector, beside the attributes."""
BATCH, RATE, TOWER_RATE, SHARP = 24, 3e-3, 2e-3, 10.0
"""SHARP: factor of cosines before the softmax."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """pictures: [N, 3, 256, 256] uint8. labels: [N, 64, 64], of the segmenter's classes. words: of each picture. Two
    neighbours show one person in one view, without anything worn and with it."""

    pictures: torch.Tensor
    labels: torch.Tensor
    words: Sequence[dict[str, str]]


def render_pairs(count: int, first: int = 0, seed: int = 0, attributes: Sequence[str] = tuple(ATTRIBUTES)) -> Pairs:
    """`count` people from `first` on, each in one random view bare and with one of the attributes in turn."""
    pictures, labels, words = [], [], []
    for portrait, worn in _pairs(count, first, seed, attributes):
        pictures.append(torch.from_numpy(portrait.picture).movedim(-1, 0))
        step = len(portrait.labels) // MAP
        shown = torch.from_numpy(portrait.labels[step // 2 :: step, step // 2 :: step].astype(np.int64))
        labels.append(torch.where(shown == WORN, WORN_CLASSES[worn], shown) if worn else shown)
        words.append({head: portrait.record[head] for head in HEADS} | {"worn": worn})
    return Pairs(torch.stack(pictures), torch.stack(labels), words)


def _pairs(count: int, first: int, seed: int, attributes: Sequence[str]) -> Iterator[tuple]:
    for number in range(count):
        person, worn = identity(first + number, seed), attributes[number % len(attributes)]
        view = view_of(seed, first + number, 1, ("sitter", "close")[number % 2])
        for each in ((), (worn,)):
            yield render(person, replace(view, worn=each)), each[0] if each else ""


def train_segmenter(pairs: Pairs, budget: Budget, seed: int = 0, say: Callable[[str], None] = print) -> Segmenter:
    """Until the budget is spent; pictures are roughened, so that it reads generated ones too."""
    torch.manual_seed(seed)
    model = Segmenter().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.02)
    small = F.interpolate(pairs.pictures.float(), (SIDE, SIDE), mode="bilinear", antialias=True).round().byte()
    counts = torch.bincount(pairs.labels.flatten(), minlength=CLASSES).float().clamp_min(1)
    weights = (counts.sum() / counts / CLASSES).sqrt().clamp(max=5)
    budget.start()
    while not budget.done:
        chosen = batch_indices(len(small), BATCH, budget.step, seed)
        random = seeded(seed + 1, budget.step)
        shown, labels = _moved(small[chosen], pairs.labels[chosen], random)
        with mixed(torch.device("cpu")):
            logits = model(shown)
        loss = F.cross_entropy(logits.float(), labels, weight=weights)
        descend(loss, optimizer, learning_rate(budget.share, budget.step, RATE, warmup=20), clip=math.inf)
        budget.tick()
        if budget.step % 50 == 0:
            say(f"segmenter: step {budget.step}, {budget.spent:.0f} s, loss {loss.item():.3f}")
    return model.eval()


def _moved(pictures: torch.Tensor, labels: torch.Tensor, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures and labels mirrored alike, the pictures roughened in colour alone."""
    if float(torch.rand((), generator=random)) < 0.5:
        pictures, labels = pictures.flip(-1), labels.flip(-1)
    gains = 0.85 + 0.3 * torch.rand(len(pictures), 3, 1, 1, generator=random)
    shown = pictures.float() / 255 * gains
    small = F.interpolate(shown, (SIDE // 2, SIDE // 2), mode="bilinear", antialias=True)
    blurred = F.interpolate(small, (SIDE, SIDE), mode="bilinear")
    share = torch.rand(len(pictures), 1, 1, 1, generator=random)
    shown = share * shown + (1 - share) * blurred
    return (shown + 0.03 * torch.randn(shown.shape, generator=random)).clamp(0, 1), labels


@torch.no_grad()
def latents_of(autoencoder: PortraitAutoencoder, pictures: torch.Tensor) -> torch.Tensor:
    """[N, 4, 32, 32] of pictures uint8."""
    return torch.cat([autoencoder.encode(part.float() / 127.5 - 1) for part in pictures.split(16)])


def train_towers(
    latents: torch.Tensor, words: Sequence[dict[str, str]], budget: Budget, seed: int = 0,
    say: Callable[[str], None] = print,
) -> LatentTowers:  # fmt: skip
    """Each head's words are told apart by their cosines to the picture, noised up to what a one-step picture is."""
    torch.manual_seed(seed)
    heads = {head: sorted({each[head] for each in words}) for head in HEADS}
    phrases = [word for head in HEADS for word in heads[head]] + [each.phrase for each in ATTRIBUTES.values()]
    towers = LatentTowers(phrases)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=TOWER_RATE, weight_decay=0.02)
    groups = {head: [phrases.index(word) for word in heads[head]] for head in HEADS}
    targets = {head: torch.tensor([heads[head].index(each[head]) for each in words]) for head in HEADS}
    worn = {each.phrase: torch.tensor([w["worn"] == name for w in words]) for name, each in ATTRIBUTES.items()}
    budget.start()
    while not budget.done:
        chosen = batch_indices(len(latents), 48, budget.step, seed)
        random = seeded(seed + 1, budget.step)
        level = 0.6 * torch.rand(len(chosen), 1, 1, 1, generator=random)
        shown = latents[chosen] + level * torch.randn(latents[chosen].shape, generator=random)
        cosines = towers.image(shown) @ F.normalize(towers.vectors, dim=1).T * SHARP
        losses = [F.cross_entropy(cosines[:, groups[head]], targets[head][chosen]) for head in HEADS]
        for phrase, there in worn.items():
            losses.append(F.binary_cross_entropy_with_logits(cosines[:, phrases.index(phrase)], there[chosen].float()))
        loss = torch.stack(losses).sum()
        descend(loss, optimizer, learning_rate(budget.share, budget.step, TOWER_RATE, warmup=20), clip=1.0)
        budget.tick()
        if budget.step % 50 == 0:
            say(f"towers: step {budget.step}, {budget.spent:.0f} s, loss {loss.item():.3f}")
    return towers.eval()


def held_out_pairs(count: int, attributes: Sequence[str] = tuple(ATTRIBUTES)) -> Pairs:
    """Of people that nothing was trained on."""
    return render_pairs(count, HELD_OUT, 0, attributes)
