"""Small shards of the portrait world's form, from random pictures."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 256


def record(index: int) -> dict:
    return {
        "caption": f"a {('smiling', 'surprised')[index % 2]} woman in a red t-shirt in a forest",
        "subject": "woman",
        "identity": index,
        "expression": ("smiling", "surprised")[index % 2],
        "garment": "t-shirt",
        "colour": "red",
        "background": "forest",
        "details": [
            {"kind": "mole", "x": 100.0, "y": 60.0, "radius": 4.0, "visible": True},
            {"kind": "mole", "x": 200.0, "y": 200.0, "radius": 4.0, "visible": False},
        ],
    }


def write_shard(folder: Path, count: int, name: str = "train-000000", seed: int = 0) -> None:
    """Pictures of smooth random colours, labels in vertical bands 0 to 8 from left to right."""
    random = np.random.default_rng(seed)
    labels = np.broadcast_to(np.arange(SIZE) * 9 // SIZE, (SIZE, SIZE)).astype(np.uint8)
    with tarfile.open(folder / f"{name}.tar", "w") as archive:
        for index in range(count):
            small = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            parts = {"jpg": image_bytes(small.resize((SIZE, SIZE), Image.BICUBIC), "JPEG", quality=95, subsampling=0)}
            parts["png"] = image_bytes(Image.fromarray(labels), "PNG")
            parts["json"] = json.dumps(record(index)).encode()
            for extension, data in parts.items():
                member = tarfile.TarInfo(f"{index:07d}_00.{extension}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def image_bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()
