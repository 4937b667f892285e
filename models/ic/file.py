"""The nets' file: one safetensors file, known by what its metadata says and not by its name.

Metadata (all strings): format, format_version, shape (JSON object with the fields of Shape), matching_levels, context,
match_level, light_most, aggregate, flow, crop, resolution, training_step. Every value is checked before a tensor is
loaded. Optional: made (JSON object), how it was trained; it is for people, and nothing reads it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal, get_args

import torch

from .. import tensor_file
from ..tensor_file import bad
from .nets import ICNets, Shape

FORMAT = "omniportrait-ic-portrait"
FORMAT_VERSION = 1
WHAT = "IC-Portrait's"
ORIGIN = "OmniPortrait's training"

Context = Literal["text", "empty"]
Flow = Literal["landmarks", "shared", "none"]
_LEVELS = (1, 6)
_LIMITS = {
    "model_channels": (32, 1280),
    "transformer_depth_middle": (0, 24),
    "context_dim": (8, 8192),
    "num_heads": (-1, 64),
    "num_head_channels": (-1, 512),
    "in_channels": (1, 16),
}
_LIST_LIMITS = {"channel_mult": (1, 16), "num_res_blocks": (1, 8), "transformer_depth": (0, 24)}


@dataclass(frozen=True)
class ICHeader:
    """What the metadata says. matching_levels: how many blocks the matching net has, the finest first; 0: no such
    net. context: what the nets were shown as the UNet's context. match_level: whose features of the matching net say
    where places lie. Of the training: light_most, the largest share of the style's pixels; aggregate, alpha and beta of
    Eq. 7; flow, who said where places lie; crop, sides of the square in sides of the face's box, from and to;
    resolution, pixels; step, how long it was."""

    shape: Shape
    matching_levels: int
    context: Context = "text"
    match_level: int = 0
    light_most: float = 0.2
    aggregate: tuple[float, float] = (0.8, 0.2)
    flow: Flow = "landmarks"
    crop: tuple[float, float] = (1.7, 2.3)
    resolution: int = 512
    step: int = 0


def save(
    path: str | os.PathLike, nets: ICNets, header: ICHeader, dtype: torch.dtype = torch.float16,
    made: Mapping[str, object] | None = None,
) -> None:  # fmt: skip
    """Write the nets in `dtype`, as a whole or not at all, but for blocks of the matching net that the header
    does not count. made: how they were trained, as plain values."""
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "shape": json.dumps(asdict(header.shape)),
        "matching_levels": str(header.matching_levels),
        "context": header.context,
        "match_level": str(header.match_level),
        "light_most": json.dumps(header.light_most),
        "aggregate": json.dumps(header.aggregate),
        "flow": header.flow,
        "crop": json.dumps(header.crop),
        "resolution": str(header.resolution),
        "training_step": str(header.step),
    }
    if made is not None:
        metadata["made"] = json.dumps(dict(made))
    values, kept = nets.state_dict(), _without_values(header.shape, header.matching_levels).state_dict()
    tensor_file.write(path, {name: values[name].detach().to("cpu", dtype).contiguous() for name in kept}, metadata)


def read_header(path: str | os.PathLike) -> ICHeader:
    """Metadata and shapes, checked, without loading a tensor. ValueError says what is wrong or what the file is."""
    with tensor_file.opened(path, ORIGIN) as file:
        return _check(Path(path).name, file)


def load(path: str | os.PathLike, dtype: torch.dtype | None = None) -> tuple[ICNets, ICHeader]:
    """The nets on the CPU in evaluation mode, in `dtype` (the file's own by default); their layers cast themselves to
    what they are given. ValueError as in `read_header`, and for weights that are not finite."""
    name = Path(path).name
    with tensor_file.opened(path, ORIGIN) as file:
        header = _check(name, file)
        weights = tensor_file.finite_tensors(name, file)
    nets = _without_values(header.shape, header.matching_levels)
    nets.load_state_dict({key: value.to(dtype or value.dtype) for key, value in weights.items()}, assign=True)
    return nets.requires_grad_(False).eval(), header


def _without_values(shape: Shape, matching_levels: int) -> ICNets:
    import comfy.ops

    return ICNets(shape, comfy.ops.manual_cast, matching_levels, device="meta")


def _check(name: str, file) -> ICHeader:
    metadata = tensor_file.metadata_of(name, file, FORMAT, FORMAT_VERSION, f"{WHAT} nets", ORIGIN)
    shape = _shape(name, metadata)
    levels = tensor_file.integer(name, metadata, "matching_levels", 0)
    if levels > len(shape.widths):
        raise bad(name, "matching_levels", f"a whole number from 0 to {len(shape.widths)}")
    level = tensor_file.integer(name, metadata, "match_level", 0)
    if level >= (levels or len(shape.widths)):
        raise bad(name, "match_level", f"a whole number below {levels or len(shape.widths)}")
    header = ICHeader(
        shape,
        levels,
        tensor_file.choice(name, metadata, "context", get_args(Context)),
        level,
        _numbers(name, metadata, "light_most", 1, 0.0, 1.0)[0],
        _numbers(name, metadata, "aggregate", 2, 0.0, 2.0),
        tensor_file.choice(name, metadata, "flow", get_args(Flow)),
        _numbers(name, metadata, "crop", 2, 1.0, 8.0),
        tensor_file.integer(name, metadata, "resolution", 64),
        tensor_file.integer(name, metadata, "training_step", 0),
    )
    expected = {key: list(value.shape) for key, value in _without_values(shape, levels).state_dict().items()}
    tensor_file.check_shapes(name, file, expected, f"a file of {WHAT} nets")
    return header


def _numbers(name: str, metadata: dict, key: str, count: int, low: float, high: float) -> tuple[float, ...]:
    values = tensor_file.from_json(name, metadata, key)
    values = [values] if count == 1 else values
    right = isinstance(values, list) and len(values) == count and all(type(each) in (int, float) for each in values)
    if not right or not all(low <= each <= high for each in values):
        raise bad(name, key, f"{'a number' if count == 1 else f'{count} numbers'} from {low:g} to {high:g}")
    return tuple(map(float, values))


def _shape(name: str, metadata: dict) -> Shape:
    given = tensor_file.from_json(name, metadata, "shape")
    known = {field.name for field in fields(Shape)}
    if not isinstance(given, dict) or set(given) != known:
        raise bad(name, "shape", f"an object with {', '.join(sorted(known))} and nothing else")
    for key, (low, high) in _LIMITS.items():
        if type(given[key]) is not int or not low <= given[key] <= high:
            raise bad(name, f"shape.{key}", f"a whole number from {low} to {high}")
    for key, (low, high) in _LIST_LIMITS.items():
        each = given[key]
        if not isinstance(each, list) or not all(type(value) is int and low <= value <= high for value in each):
            raise bad(name, f"shape.{key}", f"a list of whole numbers from {low} to {high}")
    levels, blocks = len(given["channel_mult"]), given["num_res_blocks"]
    if (
        not _LEVELS[0] <= levels <= _LEVELS[1]
        or len(blocks) != levels
        or len(given["transformer_depth"]) != sum(blocks)
    ):
        raise bad(name, "shape", f"of {_LEVELS[0]} to {_LEVELS[1]} levels, with a depth for each of their blocks")
    if given["model_channels"] % 32 or type(given["use_linear_in_transformer"]) is not bool:
        raise bad(name, "shape", "such that its channels are a multiple of 32 and use_linear_in_transformer is a truth")
    heads = given["num_heads"], given["num_head_channels"]
    if (heads[0] < 1) == (heads[1] < 1) or given["model_channels"] % max(heads):
        raise bad(name, "shape", "such that either num_heads or num_head_channels divides model_channels")
    return Shape(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})
