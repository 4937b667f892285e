"""What apply_model is given: tensors, some of them in dictionaries and lists (ControlNet's residuals)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def map_tensors(value: object, change: Callable[[torch.Tensor], torch.Tensor]) -> object:
    """`change` of every tensor in nested containers, which are new: the UNet pops ControlNet's lists as it goes."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {name: map_tensors(each, change) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_tensors(each, change) for each in value]
    return value


def some_rows(value: object, parts: Sequence[slice], count: int) -> object:
    """The rows of `parts`, one part after the other, of every tensor that has one for each of `count` rows.

    By slices, since an index would have to lie on each tensor's own device: a call's text may still be on the CPU.
    """
    return map_tensors(value, lambda tensor: _joined(tensor, parts) if len(tensor) == count else tensor)


def _joined(tensor: torch.Tensor, parts: Sequence[slice]) -> torch.Tensor:
    return tensor[parts[0]] if len(parts) == 1 else torch.cat([tensor[part] for part in parts])
