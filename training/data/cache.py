"""Latents and text states, computed once: the frozen half of the work, which is most of it for small models.

One file of records a shard, in the order of its samples, and a JSON of their places. The name is a digest of all that
decides the content: the base model, the shard as it is, which of its samples, how each picture is cropped, and what
the samples themselves name (`Cacheable.decides`). A file in which a sample is missing because its shard could not be
read is made anew next time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..files import digest, whole, write_whole
from .index import BROKEN_SHARD, PASSING, BadSample
from .plan import Slot
from .samples import Cacheable, loader

if TYPE_CHECKING:
    from ..base import Base

log = logging.getLogger(__name__)

FORMAT = 2
"""Of the records; a part of the files' names."""

Place = tuple[int, int, str]
"""Offset and size of a record, or the sample's problem."""


class Cache:
    """Reads records by the sample's number; made of what `fill` returns. Small enough to be sent to workers."""

    def __init__(self, files: dict[Path, list[int]], count: int) -> None:
        """count: of all samples, cached or not."""
        self.places: list[tuple[str, int, int, str]] = [("", 0, 0, BROKEN_SHARD)] * count
        for file, numbers in files.items():
            for number, place in zip(numbers, _places(file), strict=False):  # none, where the file has gone
                self.places[number] = (str(file), *place)

    def __call__(self, number: int) -> dict[str, torch.Tensor]:
        """ "latents" [C, h, w] and what `Cacheable.states` gave. BadSample if there was something wrong with
        the sample, or if the file has gone."""
        from safetensors.torch import load

        file, offset, size, problem = self.places[number]
        if problem:
            raise BadSample(problem)
        try:
            with open(file, "rb") as stream:
                stream.seek(offset)
                return load(stream.read(size))
        except Exception as error:  # safetensors raises its own kind, which is no OSError
            raise BadSample(BROKEN_SHARD) from error


def name_of(samples: Cacheable, numbers: Sequence[int], base_file: Path) -> str:
    """The cache's name for these samples of one shard."""
    first = samples.entries[numbers[0]]
    status = base_file.stat()
    decides = {
        "base": [str(base_file), status.st_size, status.st_mtime_ns],
        "shard": [first.shard, *first.stamp],
        "samples": [[samples.entries[number].key, *samples.homes[number]] for number in numbers],
        "format": FORMAT,
    } | samples.decides()
    return digest(json.dumps(decides))


def fill(
    samples: Cacheable, base: Base, base_file: Path, folder: Path, numbers: Iterable[int], process: int, processes: int
) -> dict[Path, list[int]]:
    """Compute what is not there yet of this process's shards; returns each shard's file and the samples in it.

    The other processes' files are theirs to write: wait for them before reading.
    """
    shards: dict[str, list[int]] = {}
    for number in numbers:
        shards.setdefault(samples.entries[number].shard, []).append(number)
    files: dict[Path, list[int]] = {}
    for turn, (shard, members) in enumerate(shards.items()):
        file = folder / "states" / f"{name_of(samples, members, base_file)}.bin"
        files[file] = members
        if turn % processes == process and not _complete(file):
            log.info("Caching latents and text states of %s (%d samples)", shard, len(members))
            _write(samples, members, base, file)
    return files


def _places(file: Path) -> list[Place]:
    try:
        return [tuple(place) for place in json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        return []


def _complete(file: Path) -> bool:
    """Whether it is there, with nothing missing that may be there another day."""
    places = _places(file)
    return bool(places) and file.is_file() and not any(problem in PASSING for *_, problem in places)


def _write(samples: Cacheable, numbers: list[int], base: Base, file: Path, chunk: int = 16) -> None:
    from safetensors.torch import save

    file.with_suffix(".json").unlink(missing_ok=True)  # which would belong to another file for a moment
    places: list[Place] = []
    slots = [[Slot(number, 0, 0) for number in numbers[i : i + chunk]] for i in range(0, len(numbers), chunk)]
    with whole(file) as part, part.open("wb") as stream:
        for found in loader(samples, slots):
            latents = _latents(found, base)
            for sample, latent in zip(found, latents, strict=True):
                problem, record = sample.problem, b""
                try:
                    if not problem:
                        record = save({"latents": latent.half().contiguous()} | dict(samples.states(base, sample)))
                except BadSample as bad:
                    problem = str(bad)
                places.append((stream.tell(), len(record), problem))
                stream.write(record)
    write_whole(file.with_suffix(".json"), json.dumps(places).encode())


def _latents(found: list, base: Base) -> list[torch.Tensor]:
    """Latents of samples whose pictures may have different sizes."""
    result: list[torch.Tensor] = [torch.zeros(0)] * len(found)
    for shape in {sample.picture.shape for sample in found}:
        same = [i for i, sample in enumerate(found) if sample.picture.shape == shape]
        for i, latent in zip(same, base.latents(torch.stack([found[i].picture for i in same])), strict=True):
            result[i] = latent
    return result
