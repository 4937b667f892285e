"""What a tower is worth on people it was not trained on: whether a picture finds its person's reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from ...models.pivot.encoder import PivotConfig, PivotEncoder, renormalised
from ..data.dataset import people_of, read_index
from ..data.index import BadSample, Entry
from ..data.samples import seen_of
from .config import Config
from .pretrained import read_tower

BATCH = 64


@dataclass(frozen=True)
class Found:
    """share: of `pictures` that are nearest to their own person's reference among those of `people`. same_noun: where
    only people of the same noun are looked at, of whom there are `rivals` on average, the person's own included."""

    share: float
    same_noun: float
    pictures: int
    people: int
    rivals: float

    def __str__(self) -> str:
        return (
            f"{self.share:.1%} of {self.pictures} pictures of {self.people} people it was not trained on are nearest "
            f"to their own reference (by chance {1 / self.people:.1%}); among those of the same noun "
            f"{self.same_noun:.1%} (by chance {1 / self.rivals:.1%})"
        )


def retrieved(references: torch.Tensor, pictures: torch.Tensor, owners: torch.Tensor, nouns: Sequence[str]) -> Found:
    """references: [P, D] of each person. pictures: [N, D]; owners: [N], whose they are. nouns: of each person.

    Nearest by the cosine about the references' mean: a tower's vectors have most of their length in common.
    """
    middle = references.mean(0)
    scores = F.normalize(pictures - middle, dim=1) @ F.normalize(references - middle, dim=1).T
    same = torch.tensor([[one == other for other in nouns] for one in nouns])[owners]
    everyone, alike = scores.argmax(1), scores.masked_fill(~same, -torch.inf).argmax(1)
    share, same_noun = (float((each == owners).float().mean()) for each in (everyone, alike))
    return Found(share, same_noun, len(pictures), len(references), float(same.sum(1).float().mean()))


@torch.no_grad()
def look(tower: Callable[[torch.Tensor], torch.Tensor], config: Config) -> Found:
    """How often a tower (faces [B, 3, S, S] to vectors [B, D]) finds people of the config's shards, of whom the first
    picture is the reference. ValueError where fewer than two have more than one."""
    faces, owners, nouns, references = [], [], [], []
    for entries in people_of(read_index(config)[0]):
        seen = [face for face in (_face(entry, config.tower.image_size) for entry in entries) if face is not None]
        if len(seen) < 2:
            continue
        references.append(len(faces))
        owners += [len(nouns)] * len(seen)
        nouns.append(entries[0].description()["subject"])
        faces += seen
    if len(nouns) < 2:
        raise ValueError("The held-out shards hold no two people with two pictures each; a sample needs an identity.")
    vectors = torch.cat([tower(torch.stack(faces[i : i + BATCH])).float() for i in range(0, len(faces), BATCH)])
    others = sorted(set(range(len(faces))) - set(references))
    return retrieved(vectors[references], vectors[others], torch.tensor(owners)[others], nouns)


def look_with_file(path: Path, config: Config, shards: Sequence[str]) -> Found:
    """`look` with the tower of a file that `train tower` wrote, at the people of other shards."""
    encoder = PivotEncoder(PivotConfig("generic", (8,), config.tower)).eval()
    encoder.load_pretrained_tower(read_tower(path))
    held_out = replace(config, data=replace(config.data, shards=tuple(shards)))
    return look(lambda faces: encoder.tower(renormalised(faces, config.tower)), held_out)


def _face(entry: Entry, side: int) -> torch.Tensor | None:
    try:
        return seen_of(entry, side)
    except BadSample:
        return None
