"""Latents and text states, computed once: the frozen half of the work, which is most of it for small models.

One file of records a shard, in the order of its samples, and a JSON of their places. The name is a digest of all that
decides the content: the base model, the shard as it is, and how each picture is cropped.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from .base import Base, Text
from .index import BROKEN_SHARD, BadSample, Entry, digest, write_whole
from .plan import Slot
from .samples import Samples, loader

log = logging.getLogger(__name__)


class Targets(Samples):
    """Samples without their reference faces, which are augmented anew each time and so never cached."""

    def face(self, *_: object) -> torch.Tensor:
        return torch.zeros(3, 1, 1)


class Cache:
    """Reads records by the entry's number; made by `fill`. Small enough to be sent to workers."""

    def __init__(self, files: dict[str, Path], entries: Sequence[Entry]) -> None:
        self.places: list[tuple[str, int, int, str]] = [("", 0, 0, "")] * len(entries)
        for shard, file in files.items():
            places = iter(json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
            for number, entry in enumerate(entries):
                if entry.shard == shard:
                    self.places[number] = (str(file), *next(places))

    def __call__(self, number: int) -> dict[str, torch.Tensor]:
        """"latents" [C, h, w], "rows" [77, D], "pooled" [P], "column" []. BadSample if there was something wrong with
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


def name_of(shard: str, base_file: str, homes: Sequence[tuple[int, int]]) -> str:
    """The cache's name for a shard."""
    stamps = [f"{path}:{os.stat(path).st_size}:{os.stat(path).st_mtime_ns}" for path in (base_file, shard)]
    return digest(*stamps, json.dumps(list(homes)))


def fill(samples: Targets, base: Base, base_file: str, folder: Path, process: int, processes: int) -> dict[str, Path]:
    """Compute what is not there yet of this process's shards; returns the file of every shard.

    The other processes' files are theirs to write: wait for them before reading.
    """
    shards = list(dict.fromkeys(entry.shard for entry in samples.entries))
    files: dict[str, Path] = {}
    for turn, shard in enumerate(shards):
        numbers = [i for i, entry in enumerate(samples.entries) if entry.shard == shard]
        file = folder / "states" / f"{name_of(shard, base_file, [samples.homes[i] for i in numbers])}.bin"
        files[shard] = file
        if turn % processes == process and not (file.is_file() and file.with_suffix(".json").is_file()):
            log.info("Caching latents and text states of %s (%d samples)", shard, len(numbers))
            _write(samples, numbers, base, file)
    return files


def _write(samples: Targets, numbers: list[int], base: Base, file: Path, chunk: int = 16) -> None:
    from safetensors.torch import save

    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    places: list[tuple[int, int, str]] = []
    slots = [[Slot(number, 0, 0) for number in numbers[i : i + chunk]] for i in range(0, len(numbers), chunk)]
    try:
        with part.open("wb") as stream:
            for found in loader(samples, slots):
                latents = _latents(found, base)
                for sample, latent in zip(found, latents, strict=True):
                    problem, record = sample.problem, b""
                    try:
                        text = None if problem else base.text(sample.caption, sample.subject, sample.occurrence)
                        record = b"" if text is None else save(_record(latent, text))
                    except BadSample as bad:
                        problem = str(bad)
                    places.append((stream.tell(), len(record), problem))
                    stream.write(record)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    write_whole(file.with_suffix(".json"), json.dumps(places).encode())


def _record(latent: torch.Tensor, text: Text) -> dict[str, torch.Tensor]:
    return {
        "latents": latent.half().contiguous(),
        "rows": text.rows.half().contiguous(),
        "pooled": text.pooled.half(),
        "column": torch.tensor(text.column),
    }


def _latents(found: list, base: Base) -> list[torch.Tensor]:
    """Latents of samples whose pictures may have different sizes."""
    result: list[torch.Tensor] = [torch.zeros(0)] * len(found)
    for shape in {sample.picture.shape for sample in found}:
        same = [i for i, sample in enumerate(found) if sample.picture.shape == shape]
        for i, latent in zip(same, base.latents(torch.stack([found[i].picture for i in same])), strict=True):
            result[i] = latent
    return result
