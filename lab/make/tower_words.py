"""Teach a tower to say the words that `make words` taught a base: what a pivot encoder starts from.

    python run.py make tower-words --tower runs/tower.safetensors --words told.state.pt --data "world/train-*.tar" \\
        --held-out "world/held_out-*.tar" --out runs/told_tower.safetensors

A tower that only tells people apart (`train tower`) says little of what they look like, and a pivot encoder on it has
all of that to find through the denoiser. This one learns it from the renderer's description: the mean squared error of
what its last feature, projected, says of a person's word. The projection is written beside it as open_clip's
`visual.proj`, from which `train pivot-encoder` begins.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...models.pivot.encoder import PivotConfig, PivotEncoder, TowerConfig, renormalised
from ...training.data.augment import Augmentation
from ...training.data.dataset import read_index
from ...training.data.index import BadSample, Entry
from ...training.data.plan import Plan, Slot
from ...training.data.samples import MicroBatches, decode, loader, seen_face
from ...training.files import write_tensors
from ...training.loop import Budget, descend, learning_rate, seeded
from ...training.pivot import config as settings
from ...training.pivot.pretrained import read_tower
from ...training.settings import Data
from ..learning.words import AXES, Words, known, shape_size


class Teller(nn.Module):
    """A tower, and the projection by which it says a word: faces [B, 3, S, S] to words [B, D]."""

    def __init__(self, config: TowerConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.tower = PivotEncoder(PivotConfig("generic", (8,), config)).tower
        self.projection = nn.Linear(config.width, width, bias=False)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return self.projection(self.tower(renormalised(faces, self.config)).float())

    def exported(self) -> dict[str, torch.Tensor]:
        """As open_clip names them."""
        tower = {f"visual.{name}": value for name, value in self.tower.state_dict().items()}
        return tower | {"visual.proj": self.projection.weight.T.contiguous()}


class Faces(torch.utils.data.Dataset):
    """A face [3, S, S] and its place among the entries, by slot; None where a picture is bad."""

    def __init__(
        self, entries: Sequence[Entry], data: Data, augmentation: Augmentation | None, side: int, seed: int
    ) -> None:
        self.entries, self.data, self.augmentation, self.side, self.seed = entries, data, augmentation, side, seed

    def __getitem__(self, slot: Slot) -> tuple[torch.Tensor, int] | None:
        entry, random = self.entries[slot.sample], seeded(self.seed, slot.epoch, slot.position, "face")
        try:
            box = tuple(entry.description()["face_box"])
            return seen_face(decode(entry.read(entry.picture)), box, self.side, self.augmentation, random), slot.sample
        except BadSample:
            return None


def batches(faces: Faces, steps: int, batch: int, seed: int):
    """Faces [B, 3, S, S] with their places [B], a step each."""
    plan = Plan([(1, 1)] * len(faces.entries), [(1, 1)], batch, seed)
    for found in loader(faces, MicroBatches(plan, 0, steps, batch)):
        good = [each for each in found if each is not None]
        if good:
            yield torch.stack([face for face, _ in good]), torch.tensor([place for _, place in good])


def described(entries: Sequence[Entry], words: Words, seed: int) -> torch.Tensor:
    """[N, AXES + LOOKS] of who is in each entry."""
    people = [int(entry.description()["identity"]) for entry in entries]
    numbers = sorted(set(people))
    place = {number: row for row, number in enumerate(numbers)}
    return words.descriptions(*known(numbers, seed))[[place[number] for number in people]]


def teach(model: Teller, faces: Faces, words: torch.Tensor, config: settings.Config, minutes: float) -> None:
    """Train for so long; words: [N, D] of the entries."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.rate, weight_decay=config.weight_decay)
    clock, recent = Budget(minutes, config.steps), []
    clock.start()
    # On CPUs the flash kernel's way back takes longer than all of a small tower's layers.
    with sdpa_kernel(SDPBackend.MATH) if not words.is_cuda else contextlib.nullcontext():
        for shown, places in batches(faces, config.steps, config.batch, config.seed):
            value = (model(shown.to(words.device)) - words[places]).square().sum(1).mean()
            rate = learning_rate(clock.share, clock.step, config.rate, config.warmup, config.rate_end)
            descend(value, optimizer, rate, config.clip)
            recent = [*recent[-99:], float(value.detach())]
            clock.tick()
            if clock.step % 100 == 0 or clock.done:
                print(f"step {clock.step}, {clock.spent:.0f} s: error {sum(recent) / len(recent):.2f}", flush=True)
            if clock.done:
                return


@torch.no_grad()
def explained(model: Teller, faces: Faces, words: Words, truth: torch.Tensor) -> torch.Tensor:
    """[AXES + LOOKS]: the share of each number's variance that is told, over the entries of `faces`."""
    said, places = [], []
    for shown, found in batches(faces, -(-len(faces.entries) // 64), 64, 0):
        said.append(model(shown.to(truth.device)) @ words.unused.to(truth.device))
        places.append(found)
    return share_explained(torch.cat(said), truth[torch.cat(places)])


def share_explained(said: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """[K]: 1 for what is told exactly, 0 for the mean, of descriptions [N, K]."""
    return 1 - (said - true).square().mean(0) / true.var(0, unbiased=False).clamp(min=1e-6)


def main(words: list[str]) -> None:
    summary = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="run.py make tower-words", description=summary, allow_abbrev=False)
    parser.add_argument("--config", default="demo", metavar="FILE", help="whose tower and augmentation (default: demo)")
    parser.add_argument("--words", type=Path, required=True, metavar="FILE", help="state of `make words`")
    parser.add_argument("--tower", type=Path, metavar="FILE", help="what `train tower` wrote, to begin with")
    parser.add_argument("--data", nargs="+", required=True, metavar="SHARDS")
    parser.add_argument("--held-out", nargs="+", metavar="SHARDS", help="say how much of these people's words it knows")
    parser.add_argument("--out", type=Path, required=True, help="the tower with its projection, safetensors")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--world-seed", type=int, default=0, help="`--seed` of `make pictures`")
    options = parser.parse_args(words)
    told = Words(shape_size())
    told.load_state_dict(torch.load(options.words, map_location="cpu", weights_only=True)["words"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        given = {"data.shards": options.data, "out": str(options.out.parent), "rate": options.rate}
        config = settings.read(options.config, given | {"batch": options.batch})
        entries = read_index(config)[0]
        begun = read_tower(options.tower) if options.tower else {}
    except ValueError as error:
        raise SystemExit(str(error)) from error
    torch.manual_seed(config.seed)
    model, side = Teller(config.tower, told.unused.shape[0]).to(device), config.tower.image_size
    if begun:
        model.tower.load_state_dict({name.removeprefix("visual."): value for name, value in begun.items()})
    augmentation = replace(config.augmentation, flip_chance=0.0)  # a mole on the other cheek is another person's
    truth = told(described(entries, told, options.world_seed)).to(device)
    teach(model.train(), Faces(entries, config.data, augmentation, side, config.seed), truth, config, options.minutes)
    write_tensors(options.out, {name: value.cpu() for name, value in model.exported().items()})
    print(f"{options.out}: learnt from {len(entries)} pictures")
    if options.held_out:
        held = read_index(replace(config, data=replace(config.data, shards=tuple(options.held_out))))[0]
        truth = described(held, told, options.world_seed).to(device)
        share = explained(model.eval(), Faces(held, config.data, None, side, 0), told, truth)
        print(
            f"Of the variance of {len(held)} held-out people's pictures' words it tells {share[:AXES].mean():.0%} (the "
            f"head's shape) and {share[AXES:].mean():.0%} (skin, lips, eyes, hair, brows)"
        )
