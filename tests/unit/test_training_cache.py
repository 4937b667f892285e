"""What the cache of latents and text states keeps, and when it is made anew, with a base whose states are known."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from made_shards import encoded, entries_of, sample, write
from omniportrait.training.base import Text
from omniportrait.training.data import cache, index
from omniportrait.training.data.index import BadSample
from omniportrait.training.data.samples import Samples
from omniportrait.training.settings import Data


class Plain:
    """A base whose latents are the picture's mean, and which counts how many it was asked for."""

    def __init__(self):
        self.pictures = 0

    def text(self, caption: str, subject: str, occurrence: int = 0) -> Text:
        return Text(torch.full((77, 4), float(len(caption))), torch.zeros(0), caption.split().index(subject))

    def latents(self, pictures: torch.Tensor) -> torch.Tensor:
        self.pictures += len(pictures)
        return torch.nn.functional.avg_pool2d(pictures.float(), 8) / 255


@pytest.fixture
def base_file(tmp_path) -> Path:
    (tmp_path / "base.safetensors").write_bytes(b"a model")
    return tmp_path / "base.safetensors"


def filled(folder: Path, base_file: Path, numbers=None, base=None, homes=(64, 64), **data) -> tuple[cache.Cache, Plain]:
    """The cache of a folder's shards, and what was computed for it."""
    entries = entries_of(folder, *sorted(folder.glob("*.tar")))
    base = base or Plain()
    targets = Samples(entries, [homes] * len(entries), Data(workers=0, **data), None, 16, 0).targets()
    numbers = range(len(entries)) if numbers is None else numbers
    return cache.Cache(cache.fill(targets, base, base_file, folder / "cache", numbers, 0, 1), len(entries)), base


def problem(found: cache.Cache, number: int) -> str:
    try:
        found(number)
    except BadSample as bad:
        return str(bad)
    return ""


def test_records_are_the_samples_own(tmp_path, base_file):
    write(tmp_path / "a.tar", [sample(1), sample(2, caption="an old woman", occurrence=0)])
    write(tmp_path / "b.tar", [sample(3)])
    found, base = filled(tmp_path, base_file)
    assert base.pictures == 3 and [int(found(i)["column"]) for i in range(3)] == [1, 2, 1]
    assert float(found(1)["rows"][0, 0]) == len("an old woman")
    assert len({float(found(i)["latents"].float().sum()) for i in range(3)}) == 3
    assert filled(tmp_path, base_file)[1].pictures == 0


def test_everything_that_decides_makes_it_anew(tmp_path, base_file):
    write(tmp_path / "a.tar", [sample(1), sample(2)])

    def made(**changes) -> int:
        return filled(tmp_path, base_file, **changes)[1].pictures

    assert made() == 2 and made() == 0
    assert made(homes=(64, 128)) == 2
    assert made(numbers=[1]) == 1
    assert made(face_labels=(1,)) == 2
    base_file.write_bytes(b"another model")
    assert made() == 2
    write(tmp_path / "a.tar", [sample(2), sample(1)])
    os.utime(tmp_path / "a.tar", (1, 1))
    assert made() == 2


def test_labels_decide_which_masks_are_empty(tmp_path, base_file):
    labels = np.zeros((64, 64), np.uint8)
    labels[8:40, 16:40] = 3
    write(tmp_path / "a.tar", [sample(without="mask.png") | {"png": encoded(labels)}])
    assert problem(filled(tmp_path, base_file, face_labels=(1,))[0], 0) == index.EMPTY_MASK
    assert problem(filled(tmp_path, base_file, face_labels=(1, 3))[0], 0) == ""


def test_shard_that_was_away_is_tried_again(tmp_path, base_file):
    shard = write(tmp_path / "a.tar", [sample(1), sample(2, without="mask.png") | {"mask.png": b"broken"}])
    entries = entries_of(tmp_path, shard)
    targets = Samples(entries, [(64, 64)] * 2, Data(workers=0), None, 16, 0).targets()

    def problems(base: Plain) -> list[str]:
        files = cache.fill(targets, base, base_file, tmp_path / "cache", range(2), 0, 1)
        found = cache.Cache(files, 2)
        return [problem(found, number) for number in range(2)]

    shard.rename(tmp_path / "away")
    assert problems(Plain()) == [index.BROKEN_SHARD] * 2
    (tmp_path / "away").rename(shard)
    assert problems(Plain()) == ["", index.BROKEN_MASK]
    again = Plain()
    assert problems(again) == ["", index.BROKEN_MASK] and again.pictures == 0  # what is broken for good is kept


def test_a_part_is_cached_alone(tmp_path, base_file):
    write(tmp_path / "a.tar", [sample(i) for i in range(4)])
    found, base = filled(tmp_path, base_file, numbers=[3, 1])
    assert base.pictures == 2 and [problem(found, i) for i in range(4)] == [index.BROKEN_SHARD, ""] * 2
    whole, _ = filled(tmp_path, base_file)
    assert torch.equal(whole(3)["latents"], found(3)["latents"])


def test_file_that_vanishes_is_a_bad_sample(tmp_path, base_file):
    write(tmp_path / "a.tar", [sample(1)])
    found, _ = filled(tmp_path, base_file)
    for file in (tmp_path / "cache" / "states").iterdir():
        file.unlink()
    assert problem(found, 0) == index.BROKEN_SHARD
