"""The portrait world's shards as arrays: each shard is decoded once into files beside it and mapped from then on."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...training.files import write_whole

SIZE = 256
SKIN, HAIR, EYES, LIPS, BROWS, EARS = 1, 2, 3, 5, 6, 8
NEAR_DETAIL = 128
"""Added to the label of pixels near a visible mole, scar or patch of freckles."""
FACE_WEIGHT, FINE_WEIGHT = 3.0, 6.0


@dataclass(frozen=True)
class Pictures:
    """All samples of some shards. `pixels[i]` is uint8 [n, 256, 256, 3] of shard i, `labels[i]` uint8 [n, 256, 256]
    (the world's label map, plus NEAR_DETAIL), `records[i]` its samples' JSON; `starts` the first index of each."""

    pixels: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    records: tuple[list[dict], ...]
    starts: np.ndarray

    def __len__(self) -> int:
        return sum(map(len, self.pixels))

    def captions(self) -> list[str]:
        return [record["caption"] for records in self.records for record in records]

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pictures uint8 [B, 3, 256, 256] in channels-last memory and labels uint8 [B, 256, 256]."""
        shards = np.searchsorted(self.starts, indices.numpy(), side="right") - 1
        rows = list(zip(shards, indices.numpy() - self.starts[shards], strict=True))
        pixels = np.stack([self.pixels[shard][row] for shard, row in rows])
        labels = np.stack([self.labels[shard][row] for shard, row in rows])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(labels)


def open_pictures(folder: Path, subset: str = "train") -> Pictures:
    """Every `<subset>-*.tar` of the folder. SystemExit with one sentence if there is none."""
    shards = sorted(folder.glob(f"{subset}-*.tar"))
    if not shards:
        raise SystemExit(f"There is no {subset}-*.tar in {folder}: run `python run.py make pictures` first.")
    pixels, labels, records = zip(*map(decoded, shards), strict=True)
    starts = np.cumsum([0, *map(len, pixels)])[:-1]
    return Pictures(pixels, labels, records, starts)


def decoded(shard: Path) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Pixels, labels and records of one shard, from its files in `cache/`, which are made when older than the shard."""
    cache = shard.parent / "cache"
    cache.mkdir(exist_ok=True)
    files = [cache / f"{shard.stem}.{name}" for name in ("pixels.npy", "labels.npy", "records.json")]
    if not all(file.is_file() and file.stat().st_mtime >= shard.stat().st_mtime for file in files):
        with ThreadPoolExecutor(2) as pool:  # Pillow decodes outside Python's lock
            samples = list(pool.map(decode_sample, read_samples(shard)))
        pixels, labels, records = zip(*samples, strict=True)
        write_whole(files[0], lambda file: np.save(file, np.stack(pixels)))
        write_whole(files[1], lambda file: np.save(file, np.stack(labels)))
        write_whole(files[2], json.dumps(records).encode())
    pixels, labels = (np.load(file, mmap_mode="r") for file in files[:2])
    return pixels, labels, json.loads(files[2].read_text(encoding="utf-8"))


def read_samples(shard: Path) -> Iterator[dict[str, bytes]]:
    """The samples of a webdataset shard: the files that share a name, by extension."""
    key, sample = None, {}
    with tarfile.open(shard) as archive:
        for member in archive:
            if not member.isfile():
                continue
            name, _, extension = member.name.partition(".")
            if name != key and sample:
                yield sample
                sample = {}
            key = name
            sample[extension] = archive.extractfile(member).read()
    if sample:
        yield sample


def decode_sample(sample: dict[str, bytes]) -> tuple[np.ndarray, np.ndarray, dict]:
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(sample["jpg"])).convert("RGB"))
    labels = np.array(Image.open(io.BytesIO(sample["png"])).convert("L"))
    record = json.loads(sample["json"])
    mark_details(labels, record.get("details", ()))
    return pixels, labels, record


def mark_details(labels: np.ndarray, details: list[dict]) -> None:
    """Add NEAR_DETAIL in a disk of 1.5 radii, 3 pixels at least, around each visible detail, in place."""
    y, x = np.ogrid[: labels.shape[0], : labels.shape[1]]
    for detail in details:
        if detail.get("visible", True):
            radius = max(3.0, 1.5 * detail["radius"])
            labels[np.hypot(x - detail["x"], y - detail["y"]) <= radius] |= NEAR_DETAIL


def weight_table() -> torch.Tensor:
    """[256] weight of a pixel by its value in `labels`: what is small on a face counts most."""
    table = torch.ones(256)
    table[SKIN] = FACE_WEIGHT
    table[[EYES, LIPS, BROWS]] = FINE_WEIGHT
    table[NEAR_DETAIL:] = FINE_WEIGHT
    return table


def faces(labels: torch.Tensor) -> torch.Tensor:
    """float [B, 1, H, W], 1 on faces with their hair and ears, of label maps uint8 [B, H, W]."""
    head = torch.tensor((SKIN, HAIR, EYES, LIPS, BROWS, EARS))
    return torch.isin(labels & (NEAR_DETAIL - 1), head.to(labels)).float()[:, None]


def pixel_weights(labels: torch.Tensor) -> torch.Tensor:
    """Loss weights float [B, 1, H, W] of label maps uint8 [B, H, W], grown by two pixels so that lids and the edges of
    lips and brows count like what they enclose."""
    weights = weight_table().to(labels.device)[labels.int()][:, None]
    return torch.nn.functional.max_pool2d(weights, 5, 1, 2)


def to_float(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float -1..1."""
    return pixels.float().div_(127.5).sub_(1.0)
