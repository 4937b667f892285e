"""Small IC-Portrait nets of random values, and their file."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import comfy.ops
import torch
from omniportrait.lab.testbed import small
from omniportrait.models.ic.file import ICHeader, save
from omniportrait.models.ic.nets import ICNets, Shape

SHAPE = Shape(32, (1, 2), (1, 1), (0, 1), 1, 16, num_heads=2)
LANDMARKS = ((40.0, 50.0), (88.0, 50.0), (64.0, 70.0), (46.0, 92.0), (82.0, 92.0))


def face(seed: int, shift: float = 0.0):
    """A picture with landmarks, all moved to the right by so many pixels."""
    moved = tuple((x + shift, y) for x, y in LANDMARKS)
    return replace(small.face(seed), mask=None, face_box=(20.0, 20.0, 108.0, 110.0), landmarks=moved)


def nets(shape: Shape = SHAPE, seed: int = 0, levels: int | None = None, zero: float = 0.1) -> ICNets:
    """levels: of the matching net, all by default. zero: deviation of the zero convolutions, for nets that have learned
    something."""
    made = ICNets(shape, comfy.ops.manual_cast, levels, device="cpu")
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in made.named_parameters():
            scale = zero if ".zero." in name else 0.02 if value.ndim < 2 else 1 / max(value[0].numel(), 1) ** 0.5
            value.copy_(torch.randn(value.shape, generator=random) * scale)
            if value.ndim == 1 and name.endswith("weight"):
                value.add_(1)
    return made.requires_grad_(False)


def metadata(**changed: str | None) -> dict[str, str]:
    """The header of SHAPE as the file format's description says, written by hand."""
    told = {
        "format": "omniportrait-ic-portrait", "format_version": "1", "shape": json.dumps(asdict(SHAPE)),
        "matching_levels": "5", "context": "text", "match_level": "3", "light_most": "0.2",
        "aggregate": "[0.8, 0.2]", "flow": "landmarks", "crop": "[1.7, 2.3]",
        "resolution": "512", "training_step": "7",
    }  # fmt: skip
    return {key: value for key, value in (told | changed).items() if value is not None}


def written(path, shape: Shape = SHAPE, levels: int | None = None, **options):
    levels = len(shape.widths) if levels is None else levels
    header = ICHeader(shape, levels, match_level=(levels or len(shape.widths)) - 1)
    save(path, nets(shape, levels=levels, **options), header, torch.float32)
    return path
