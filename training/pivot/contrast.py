"""Two pictures of one person nearer to each other than to those of the batch's other people (InfoNCE, van den Oord et
al. 2018; both ways, as CLIP does)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...models.pivot.encoder import PivotConfig, PivotEncoder, TowerConfig, renormalised
from ..data.augment import Augmentation
from ..data.dataset import people_of, read_index
from ..data.index import BadSample, Entry
from ..data.plan import Plan, Slot
from ..data.samples import MicroBatches, loader, seen_of
from ..files import write_tensors
from ..loop import Budget, descend, learning_rate, seeded
from ..settings import Data
from .config import Config

TEMPERATURE = 0.1
WIDTH = 64
"""Of the space in which faces are compared; its projection is thrown away, as in SimCLR."""


class Pairs(torch.utils.data.Dataset):
    """Two faces [2, 3, S, S] of a person, by the person's number; None where a picture is bad."""

    def __init__(
        self, people: Sequence[Sequence[Entry]], data: Data, augmentation: Augmentation, side: int, seed: int
    ) -> None:
        self.people, self.data, self.augmentation, self.side, self.seed = people, data, augmentation, side, seed

    def __getitem__(self, slot: Slot) -> torch.Tensor | None:
        random = seeded(self.seed, slot.epoch, slot.position, "pair")
        pictures = self.people[slot.sample]
        chosen = torch.randperm(len(pictures), generator=random)[:2].tolist()
        try:
            shown = (seen_of(pictures[number], self.side, self.augmentation, random) for number in chosen)
            return torch.stack(list(shown))
        except BadSample:
            return None


class Comparison(nn.Module):
    """A tower and the space in which its faces are compared."""

    def __init__(self, tower: TowerConfig) -> None:
        super().__init__()
        self.config = tower
        self.tower = PivotEncoder(PivotConfig("generic", (8,), tower)).tower
        self.head = nn.Sequential(nn.Linear(tower.width, tower.width), nn.GELU(), nn.Linear(tower.width, WIDTH))

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.head(self.tower(renormalised(faces, self.config))).float(), dim=-1)


def contrast(ones: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, float]:
    """InfoNCE of unit vectors [P, D] whose rows belong together, and the share of rows that find their partner."""
    scores = ones @ others.T / TEMPERATURE
    right = torch.arange(len(scores), device=scores.device)
    value = (F.cross_entropy(scores, right) + F.cross_entropy(scores.T, right)) / 2
    return value, float((scores.argmax(1) == right).float().mean())


def by_noun(nouns: Sequence[str], batch: int, seed: int) -> Plan:
    """Batches of people of one noun, where it has a batch of them.

    A woman is told from a man at a glance, so beside one of them the batch's other half teaches next to nothing; and
    the encoder's word has the noun already. The plan keeps shapes of pictures apart, so each noun is given one.
    """
    shapes = {noun: (2**place, 1) for place, noun in enumerate(sorted(set(nouns)))}
    return Plan([shapes[noun] for noun in nouns], list(shapes.values()), batch, seed)


def teach(config: Config, out: Path, minutes: float, say: Callable[[str], None]) -> float:
    """Train for so long, or for config.steps, and write the tower; returns the last steps' share of found partners.

    Nothing is mirrored, whatever the config says: a mole on the other cheek is another person's, and a pair of which
    one is mirrored would teach the tower not to see that.
    ValueError where fewer than a batch of people have two pictures, or where no picture can be read.
    """
    people = people_of(read_index(config)[0])
    if len(people) < config.batch:
        raise ValueError(f"Only {len(people)} people have an identity and two pictures; a batch needs {config.batch}.")
    augmentation = replace(config.augmentation, flip_chance=0.0)
    pairs = Pairs(people, config.data, augmentation, config.tower.image_size, config.seed)
    plan = by_noun([group[0].description()["subject"] for group in people], config.batch, config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Comparison(config.tower)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rate, weight_decay=config.weight_decay)
    clock, recent = Budget(minutes, config.steps), []
    clock.start()
    for found in loader(pairs, MicroBatches(plan, 0, config.steps, config.batch)):
        faces = [each for each in found if each is not None]
        if len(faces) > 1:
            recent = [*recent[-19:], _step(model, optimizer, torch.stack(faces).to(device), config, clock)]
        clock.tick()
        if recent and (clock.step % 20 == 0 or clock.done):
            value, accuracy = (sum(each) / len(recent) for each in zip(*recent, strict=True))
            say(f"step {clock.step}, {clock.spent:.0f} s: loss {value:.3f}, found {accuracy:.1%}")
        if clock.done:
            break
    if not recent:
        raise ValueError("No pictures could be read: check the shards, of which the index lists more than there are.")
    _write(model.tower, out)
    return sum(accuracy for _, accuracy in recent) / len(recent)


def attention_on(device: torch.device) -> contextlib.AbstractContextManager:
    """Attention to train a small tower with: on CPUs the flash kernel's way back takes longer than all its layers."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()


def _step(
    model: Comparison, optimizer: torch.optim.Optimizer, faces: torch.Tensor, config: Config, clock: Budget
) -> tuple[float, float]:
    with (
        attention_on(faces.device),
        torch.autocast(faces.device.type, torch.bfloat16, enabled=config.precision == "bf16"),
    ):
        vectors = model(faces.flatten(0, 1)).view(*faces.shape[:2], -1)
    value, accuracy = contrast(vectors[:, 0], vectors[:, 1])
    rate = learning_rate(clock.share, clock.step, config.rate, config.warmup, config.rate_end)
    descend(value, optimizer, rate, config.clip)
    return float(value.detach()), accuracy


def _write(tower: nn.Module, out: Path) -> None:
    """As OpenCLIP names its image tower."""
    write_tensors(out, {f"visual.{name}": value for name, value in tower.state_dict().items()})
