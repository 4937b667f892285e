"""The pivot encoder's file: one safetensors file, known by what its metadata says and not by its name.

Metadata (all strings): format, format_version, base_family, text_dims (JSON list), tower (JSON object with the fields
of TowerConfig; CLIP's mean and std where they are absent), fusion, training_step. Every value is checked before a
tensor is loaded: the file comes from anywhere. Optional: made (JSON object), how it was trained; it is for people, and
nothing reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from ..tensor_file import bad, check_shapes, choice, finite_tensors, from_json, integer, metadata_of, opened, write
from .encoder import FAMILIES, FUSIONS, PivotConfig, PivotEncoder, TowerConfig

FORMAT = "omniportrait-pivot-encoder"
FORMAT_VERSION = 1
ORIGIN = "OmniPortrait's training"

_TOWER_LIMITS = {
    "image_size": (8, 1024),
    "patch_size": (2, 64),
    "width": (8, 4096),
    "layers": (1, 64),
    "head_width": (4, 512),
    "mlp_ratio": (0.25, 8.0),
}
_COLOUR_LIMITS = {"mean": (0.0, 1.0), "std": (0.01, 1.0)}
_TEXT_LIMITS = (8, 8192)
_MAX_TEXT_ENCODERS = 3
_MAX_PATCHES = 4096


@dataclass(frozen=True)
class PivotHeader:
    """What the metadata says. step: how long it was trained, 0 for untrained. dtype: of the tower in the file."""

    config: PivotConfig
    step: int
    dtype: torch.dtype


def save(
    path: str | os.PathLike, encoder: PivotEncoder, step: int, dtype: torch.dtype = torch.float32,
    made: Mapping[str, object] | None = None,
) -> None:  # fmt: skip
    """Write the encoder to `path` in `dtype`. Nobody ever sees half a file; an interrupted write leaves the old one.

    made: how it was trained, as plain values.
    """
    config = encoder.config
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "base_family": config.family,
        "text_dims": json.dumps(config.text_dims),
        "tower": json.dumps(asdict(config.tower)),
        "fusion": config.fusion,
        "training_step": str(step),
    }
    if made is not None:
        metadata["made"] = json.dumps(dict(made))
    weights = {key: value.detach().to("cpu", dtype).contiguous() for key, value in encoder.state_dict().items()}
    write(path, weights, metadata)


def read_header(path: str | os.PathLike) -> PivotHeader:
    """Metadata and shapes, checked, without loading a tensor. ValueError says what is wrong or what the file is."""
    with opened(path, ORIGIN) as file:
        return _check(Path(path).name, file)


def load(path: str | os.PathLike, dtype: torch.dtype | None = None) -> tuple[PivotEncoder, PivotHeader]:
    """The encoder on the CPU in evaluation mode: its tower in `dtype` (the file's own by default), the rest in float32.

    ValueError as in `read_header`, and for weights that are not finite.
    """
    name = Path(path).name
    with opened(path, ORIGIN) as file:
        header = _check(name, file)
        weights = finite_tensors(name, file)
    with torch.device("meta"):
        encoder = PivotEncoder(header.config)
    dtype = dtype or header.dtype
    encoder.load_state_dict(
        {key: value.to(dtype if key.startswith("tower.") else torch.float32) for key, value in weights.items()},
        assign=True,
    )
    return encoder.eval(), header


def _check(name: str, file) -> PivotHeader:
    metadata = metadata_of(name, file, FORMAT, FORMAT_VERSION, "a pivot encoder", ORIGIN)
    family = choice(name, metadata, "base_family", FAMILIES)
    text_dims, tower = _text_dims(name, metadata), _tower(name, metadata)
    fusion = choice(name, metadata, "fusion", FUSIONS)
    try:
        config = PivotConfig(family, text_dims, tower, fusion)
    except ValueError as error:
        raise ValueError(f"{name} cannot be used: {error}") from error
    step = integer(name, metadata, "training_step", 0)
    types = check_shapes(name, file, _expected(config), "a pivot encoder")
    return PivotHeader(config, step, types["tower.conv1.weight"])


def _text_dims(name: str, metadata: dict) -> tuple[int, ...]:
    dims = from_json(name, metadata, "text_dims")
    low, high = _TEXT_LIMITS
    if (
        not isinstance(dims, list)
        or not 1 <= len(dims) <= _MAX_TEXT_ENCODERS
        or not all(type(dim) is int and low <= dim <= high for dim in dims)
    ):
        raise bad(name, "text_dims", f"a list of 1 to {_MAX_TEXT_ENCODERS} widths from {low} to {high}")
    return tuple(dims)


def _tower(name: str, metadata: dict) -> TowerConfig:
    given = from_json(name, metadata, "tower")
    known = {field.name for field in fields(TowerConfig)}
    if not isinstance(given, dict) or not known - set(_COLOUR_LIMITS) <= set(given) <= known:
        raise bad(name, "tower", f"an object with {', '.join(sorted(known))} and nothing else")
    for key, (low, high) in _TOWER_LIMITS.items():
        number = type(given[key]) is int or (key == "mlp_ratio" and type(given[key]) is float)
        if not number or not low <= given[key] <= high:
            raise bad(name, f"tower.{key}", f"a number from {low} to {high}")
    if type(given["quick_gelu"]) is not bool:
        raise bad(name, "tower.quick_gelu", "true or false")
    for key in _COLOUR_LIMITS.keys() & given.keys():
        given[key] = _colour(name, key, given[key])
    tower = TowerConfig(**given)
    if tower.width % tower.head_width:
        raise bad(name, "tower.width", "a multiple of tower.head_width")
    if not tower.patch_size <= tower.image_size or (tower.image_size // tower.patch_size) ** 2 > _MAX_PATCHES:
        raise bad(name, "tower.patch_size", f"such that the image has from 1 to {_MAX_PATCHES} patches")
    return tower


def _colour(name: str, key: str, values: object) -> tuple[float, ...]:
    low, high = _COLOUR_LIMITS[key]
    three = isinstance(values, list) and len(values) == 3 and all(type(value) in (int, float) for value in values)
    if not three or not all(low <= value <= high for value in values):
        raise bad(name, f"tower.{key}", f"three numbers from {low} to {high}")
    return tuple(map(float, values))


def _expected(config: PivotConfig) -> dict[str, list[int]]:
    """The shapes of the module's tensors, free of memory on the meta device."""
    with torch.device("meta"):
        return {key: list(value.shape) for key, value in PivotEncoder(config).state_dict().items()}
