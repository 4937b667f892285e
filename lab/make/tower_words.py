"""Let a tower say the words that `make words` taught a base: what a pivot encoder starts from.

    python run.py make tower-words --tower runs/tower.safetensors --words told.state.pt --data "world/train-*.tar" \\
        --held-out "world/held_out-*.tar" --out runs/told_tower.safetensors

The projection of the tower's last feature that comes nearest to each person's word, by ridge regression, is written
beside the tower as open_clip's `visual.proj`, from which `train pivot-encoder` begins. It has nothing left to find but
how strongly to speak and what else to say.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...models.pivot.encoder import PivotConfig, PivotEncoder, renormalised
from ...training.data.dataset import read_index
from ...training.data.index import BadSample
from ...training.data.samples import decode, seen_face
from ...training.files import write_tensors
from ...training.pivot import config as settings
from ...training.pivot.pretrained import read_tower
from ..learning.words import AXES, Words, known, shape_size

BATCH = 64
RIDGE = 1e-3
"""In the features' mean square."""


@torch.no_grad()
def features(encoder: PivotEncoder, config: settings.Config, shards: Sequence[str]) -> tuple[torch.Tensor, list[int]]:
    """What the tower gives for each face of the shards, [N, width], and the numbers of the people [N]."""
    found, people, faces = [], [], []

    def flush() -> None:
        if faces:
            found.append(encoder.tower(renormalised(torch.stack(faces), config.tower)).float())
            faces.clear()

    for entry in read_index(replace(config, data=replace(config.data, shards=tuple(shards))))[0]:
        told = entry.description()
        try:
            face = seen_face(decode(entry.read(entry.picture)), tuple(told["face_box"]), config.tower.image_size)
        except BadSample:
            continue
        faces.append(face)
        people.append(int(told["identity"]))
        if len(faces) == BATCH:
            flush()
    flush()
    return torch.cat(found), people


def projection(seen: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """[width, D]: the ridge regression of words [N, D] on features [N, width]."""
    seen, words = seen.double(), words.double()
    square = seen.T @ seen
    ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    return torch.linalg.solve(square + ridge, seen.T @ words).float()


def explained(said: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """[K]: the share of each number's variance that is told, of descriptions [N, K]; below 0: worse than the mean."""
    return 1 - (said - true).square().mean(0) / true.var(0, unbiased=False).clamp(min=1e-6)


def main(words: list[str]) -> None:
    summary = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="run.py make tower-words", description=summary, allow_abbrev=False)
    parser.add_argument("--config", default="demo", metavar="FILE", help="whose tower (default: demo)")
    parser.add_argument("--tower", type=Path, required=True, help="what `train tower` wrote")
    parser.add_argument("--words", type=Path, required=True, metavar="FILE", help="state of `make words`")
    parser.add_argument("--data", nargs="+", required=True, metavar="SHARDS")
    parser.add_argument("--held-out", nargs="+", metavar="SHARDS", help="say how much of these people's words it knows")
    parser.add_argument("--out", type=Path, required=True, help="the tower with its projection, safetensors")
    parser.add_argument("--world-seed", type=int, default=0, help="`--seed` of `make pictures`")
    options = parser.parse_args(words)
    told = Words(shape_size())
    told.load_state_dict(torch.load(options.words, map_location="cpu", weights_only=True)["words"])
    try:
        config = settings.read(options.config, {"data.shards": options.data, "out": str(options.out.parent)})
        tower = read_tower(options.tower)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    encoder = PivotEncoder(PivotConfig("generic", (8,), config.tower)).eval()
    encoder.load_pretrained_tower(tower)

    def described(shards: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        seen, people = features(encoder, config, shards)
        numbers = sorted(set(people))
        rows = torch.tensor([numbers.index(number) for number in people])
        return seen, told.descriptions(*known(numbers, options.world_seed))[rows]

    seen, descriptions = described(options.data)
    fitted = projection(seen, told(descriptions))
    write_tensors(options.out, tower | {"visual.proj": fitted})
    print(f"{options.out}: fitted to {len(seen)} pictures")
    if options.held_out:
        seen, descriptions = described(options.held_out)
        share = explained(seen @ fitted @ told.unused, descriptions)
        print(
            f"Of the variance of held-out people's words it tells {share[:AXES].mean():.0%} (the head's shape) and "
            f"{share[AXES:].mean():.0%} (skin, lips, eyes, hair, brows), from {len(seen)} pictures"
        )
