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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...models.pivot.encoder import PivotConfig, PivotEncoder
from ...training.data.augment import Augmentation
from ...training.data.dataset import read_index
from ...training.data.index import BadSample, Entry
from ...training.data.plan import Plan, Slot
from ...training.data.samples import MicroBatches, loader, seen_of
from ...training.files import write_tensors
from ...training.loop import Budget, descend, learning_rate, seeded
from ...training.pivot import config as settings
from ...training.pivot.contrast import attention_on
from ...training.pivot.pretrained import read_tower
from ...training.settings import Data
from ..learning.words import AXES, Sitters, Words, shape_size


class Faces(torch.utils.data.Dataset):
    """A face [3, S, S] and its place among the entries, by slot; None where a picture is bad."""

    def __init__(
        self, entries: Sequence[Entry], data: Data, augmentation: Augmentation | None, side: int, seed: int
    ) -> None:
        self.entries, self.data, self.augmentation, self.side, self.seed = entries, data, augmentation, side, seed

    def __getitem__(self, slot: Slot) -> tuple[torch.Tensor, int] | None:
        entry, random = self.entries[slot.sample], seeded(self.seed, slot.epoch, slot.position, "face")
        try:
            return seen_of(entry, self.side, self.augmentation, random), slot.sample
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
    sitters = Sitters([entry.description() for entry in entries], words, seed=seed)
    sitters.describe()
    return sitters.descriptions[sitters.who]


def exported(encoder: PivotEncoder) -> dict[str, torch.Tensor]:
    """The tower and its projection as open_clip names them."""
    state = {f"visual.{name}": value.cpu() for name, value in encoder.tower.state_dict().items()}
    return state | {"visual.proj": encoder.projections[0].weight.detach().T.contiguous().cpu()}


def teach(encoder: PivotEncoder, faces: Faces, words: torch.Tensor, config: settings.Config, minutes: float) -> None:
    """Train the tower and its projection for so long; words: [N, D] of the entries."""
    learnt = [*encoder.tower.parameters(), *encoder.projections.parameters()]
    optimizer = torch.optim.AdamW(learnt, lr=config.rate, weight_decay=config.weight_decay)
    clock, recent = Budget(minutes, config.steps), []
    clock.start()
    with attention_on(words.device):
        for shown, places in batches(faces, config.steps, config.batch, config.seed):
            value = (encoder.reference(shown.to(words.device)) - words[places]).square().sum(1).mean()
            rate = learning_rate(clock.share, clock.step, config.rate, config.warmup, config.rate_end)
            descend(value, optimizer, rate, config.clip)
            recent = [*recent[-99:], float(value.detach())]
            clock.tick()
            if clock.step % 100 == 0 or clock.done:
                print(f"step {clock.step}, {clock.spent:.0f} s: error {sum(recent) / len(recent):.2f}", flush=True)
            if clock.done:
                return


@torch.no_grad()
def explained(encoder: PivotEncoder, faces: Faces, words: Words, truth: torch.Tensor) -> torch.Tensor:
    """[AXES + LOOKS]: the share of each number's variance that is told, over the entries of `faces`."""
    said, places = [], []
    for shown, found in batches(faces, -(-len(faces.entries) // 64), 64, 0):
        said.append(encoder.reference(shown.to(truth.device)) @ words.unused.to(truth.device))
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
    told = Words(shape_size()).taught(options.words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        given = {"data.shards": options.data, "out": str(options.out.parent), "rate": options.rate}
        config = settings.read(options.config, given | {"batch": options.batch})
        entries = read_index(config)[0]
        torch.manual_seed(config.seed)
        encoder = PivotEncoder(PivotConfig("generic", (told.unused.shape[0],), config.tower)).to(device)
        if options.tower:
            encoder.load_pretrained_tower(read_tower(options.tower))
    except ValueError as error:
        raise SystemExit(str(error)) from error
    side = config.tower.image_size
    augmentation = replace(config.augmentation, flip_chance=0.0)  # a mole on the other cheek is another person's
    truth = told(described(entries, told, options.world_seed)).to(device)
    teach(encoder.train(), Faces(entries, config.data, augmentation, side, config.seed), truth, config, options.minutes)
    write_tensors(options.out, exported(encoder))
    print(f"{options.out}: learnt from {len(entries)} pictures")
    if options.held_out:
        held = read_index(replace(config, data=replace(config.data, shards=tuple(options.held_out))))[0]
        truth = described(held, told, options.world_seed).to(device)
        share = explained(encoder.eval(), Faces(held, config.data, None, side, 0), told, truth)
        print(
            f"Of the variance of {len(held)} held-out people's pictures' words it tells {share[:AXES].mean():.0%} (the "
            f"head's shape) and {share[AXES:].mean():.0%} (skin, lips, eyes, hair, brows)"
        )
