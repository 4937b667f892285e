"""Portraits as webdataset shards. A shard is decided by seed and number alone, so that an interrupted run goes on."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ...training.files import whole
from .identity import identity
from .portrait import Portrait, render
from .view import FRAMINGS, View, random_view, reference_view

HELD_OUT = 1_000_000
"""Identities from this number on are never trained on."""
REFERENCE_STREAM = 1_000_000
"""What stands for view 0 in the seed of its stream."""


@dataclass(frozen=True)
class Shard:
    """`count` identities from `first` on, each once as reference and `views` times otherwise, in one of FRAMINGS.
    places: whether `Portrait.places` goes along, as `<key>.place.npy`."""

    path: Path
    first: int
    count: int
    views: int
    size: int
    seed: int
    framing: str = "sitter"
    places: bool = False


def plan(
    folder: Path, identities: int, held_out: int, views: int, size: int, seed: int, of: int = 100,
    framing: str = "sitter", start: int = 0, places: bool = False,
) -> list[Shard]:  # fmt: skip
    """The shards of a data set, `of` identities each; the held-out ones come first, since all measures need them. Those
    to train on are the people from `start` on, and a shard's number is that of its first person in hundreds (`of`)."""
    shards = []
    for name, first, total in (("held_out", HELD_OUT, held_out), ("train", start, identities)):
        for done in range(0, total, of):
            index = (first % HELD_OUT + done) // of
            path = folder / f"{name}-{index:06d}.tar"
            shards.append(Shard(path, first + done, min(of, total - done), views, size, seed, framing, places))
    return shards


def view_random(seed: int, number: int, index: int) -> np.random.Generator:
    """The generator of one view. numpy pads seeds with zeros, so (seed, number, 0) is the identity's own stream, and
    the reference's clothes would tell who wears them: view 0 has another number."""
    return np.random.default_rng((seed, number, index or REFERENCE_STREAM))


def view_of(seed: int, number: int, index: int, framing: str = "sitter") -> View:
    """One view of a person; view 0 is the reference. Another framing changes size and place alone."""
    view = random_view if index else reference_view
    return view(view_random(seed, number, index), FRAMINGS[framing])


def portraits(shard: Shard) -> Iterator[tuple[str, Portrait]]:
    """Key and portrait, one after the other; view 0 is the reference."""
    for number in range(shard.first, shard.first + shard.count):
        person = identity(number, shard.seed)
        for index in range(shard.views + 1):
            yield (
                f"{number:07d}_{index:02d}",
                render(person, view_of(shard.seed, number, index, shard.framing), shard.size),
            )


def write(shard: Shard) -> Path:
    """Write one shard and return its path; one that is there is left as it is."""
    if not shard.path.exists():
        write_portraits(shard.path, portraits(shard), shard.places)
    return shard.path


def write_portraits(path: Path, found: Iterable[tuple[str, Portrait]], places: bool = False) -> None:
    """A shard of keys and portraits, as a whole or not at all. places: as of `Shard`."""
    import webdataset

    with whole(path) as part, webdataset.TarWriter(str(part)) as tar:
        for key, portrait in found:
            members = {
                "jpg": encoded(portrait.picture, "JPEG", quality=95, subsampling=0),
                "png": encoded(portrait.labels, "PNG", compress_level=4),
                "json": json.dumps(portrait.record).encode(),
            }
            if places:
                members["place.npy"] = saved(portrait.places)
            tar.write({"__key__": key} | members)


def saved(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def write_all(shards: list[Shard], workers: int) -> Iterator[Path]:
    """Write the shards in `workers` processes, and give each path as it is done."""
    with ProcessPoolExecutor(workers) as pool:
        for done in as_completed([pool.submit(write, shard) for shard in shards]):
            yield done.result()


def contact_sheet(shard: Shard, people: int, views: int) -> Image.Image:
    """`people` rows: the reference, then `views` others."""
    rows: dict[str, list[np.ndarray]] = {}
    for key, portrait in portraits(replace(shard, count=people, views=views)):
        rows.setdefault(key.split("_")[0], []).append(portrait.picture)
    return Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in rows.values()], 0))
