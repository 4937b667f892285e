"""Small shards of pictures with descriptions, for the tests of the training's data."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from omniportrait.training.data import index
from omniportrait.training.data.samples import Samples
from omniportrait.training.settings import Data
from PIL import Image

BOX = [16, 8, 40, 40]
ENDLESS = float("inf")
GOOD = {"caption": "a woman in a forest", "subject": "woman", "face_box": BOX}


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def picture(seed: int = 0, width: int = 64, height: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def mask(width: int = 64, height: int = 64) -> np.ndarray:
    pixels = np.zeros((height, width), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    return pixels


def sample(seed: int = 0, without: str = "", **described) -> dict[str, bytes]:
    files = {
        "jpg": encoded(picture(seed), "JPEG", quality=95),
        "json": json.dumps(GOOD | described).encode(),
        "mask.png": encoded(mask()),
    }
    files.pop(without, None)
    return files


def write(path: Path, samples: list[dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for number, files in enumerate(samples):
            for extension, content in files.items():
                member = tarfile.TarInfo(f"{number:04d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def entries_of(folder: Path, *shards: Path) -> list[index.Entry]:
    return [entry for shard in shards for entry in index.load(str(shard), folder / "cache")]


def opened(folder: Path, samples: list[dict[str, bytes]], data: Data | None = None, **options) -> Samples:
    entries = entries_of(folder, write(folder / "train-000000.tar", samples))
    options = {"augmentation": None, "side": 16, "seed": 0} | options
    return Samples(entries, [(64, 64)] * len(entries), data or Data(workers=0), **options)
