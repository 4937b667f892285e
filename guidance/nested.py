"""What apply_model is given: tensors, some of them in dictionaries and lists (ControlNet's residuals)."""

from __future__ import annotations

from collections.abc import Callable

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


def some_rows(value: object, index: slice | torch.Tensor, count: int) -> object:
    """The rows `index` of every tensor that has one for each of `count` rows."""
    return map_tensors(value, lambda tensor: tensor[index] if len(tensor) == count else tensor)
