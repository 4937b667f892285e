"""Checkpointing: of a block keep only the inputs, and compute the rest again on the way back.

torch.utils.checkpoint hands on what it computed again without asking whether somebody has written into it since: a
patch that does so inside a block (FreeU's way) gave a wrong gradient without a word. Here it is an error, the same as
without checkpointing, and no harm with `copies`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from .saved import WORDS, Copies

Guard = Callable[[], contextlib.AbstractContextManager]


class _Enough(Exception):
    """Leaves a block that is computed again once all is there: its last product is not needed."""


def checkpoint_forward(module: torch.nn.Module, guard: Guard, copies: Copies | None) -> None:
    """Have a block of a private tree compute itself again on the way back.

    guard: the pass's own context: taking a gradient switches function modes off, so the recomputation switches it on
    again. copies: what to keep where patches write in place.
    """
    forward = module.forward

    def run(*args: object, **kwargs: object) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if "transformer_options" in kwargs:
            # The UNet goes on changing this dictionary; the recomputation must see the block's own number or patches
            # stop firing and the gradient is silently wrong.
            kwargs["transformer_options"] = dict(kwargs["transformer_options"])
        once = Recomputed(forward, guard, copies, args, kwargs)
        with torch.autograd.graph.saved_tensors_hooks(once.pack, once.unpack):
            return forward(*args, **kwargs)

    module.__dict__["forward"] = run


class Recomputed:
    """One run of a block: autograd keeps numbers instead of tensors, and asks for the tensors on the way back.

    Raises on the way back: RuntimeError where a tensor has been written into, without `copies`; and where the block did
    not do the same again.
    """

    def __init__(
        self, forward: Callable, guard: Guard, copies: Copies | None, args: tuple, kwargs: dict[str, object]
    ) -> None:
        self._forward, self._guard, self._copies = forward, guard, copies
        self._names = tuple(kwargs)
        self._inputs = [self._own(value) for value in (*args, *kwargs.values())]
        self._versions = [_version(value) for value in self._inputs]
        self._autocast = _autocast_of(self._inputs)
        self._kinds: list[tuple] = []  # of what autograd wanted to keep, in order
        self._made: dict[int, tuple[torch.Tensor, int | None]] = {}

    def pack(self, tensor: torch.Tensor) -> int:
        """The number of a tensor that autograd wants to keep."""
        self._kinds.append(_kind(tensor))
        return len(self._kinds) - 1

    def unpack(self, number: int) -> torch.Tensor:
        """The tensor. A second way back through the same block (two people) computes it once more."""
        if number not in self._made:
            self._compute()
        tensor, version = self._made.pop(number)
        if _version(tensor) != version:
            raise RuntimeError(f"A tensor inside a checkpointed block has been {WORDS}.")
        return tensor

    def _compute(self) -> None:
        if [_version(value) for value in self._inputs] != self._versions:
            raise RuntimeError(f"The input of a checkpointed block has been {WORDS}.")
        keep = self._copies or torch.Tensor.detach
        self._made.clear()

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            number = len(self._made)
            if self._kinds[number] != _kind(tensor):
                raise RuntimeError("A checkpointed block did not do the same again.")
            kept = keep(tensor)
            self._made[number] = kept, _version(kept)
            if number + 1 == len(self._kinds):
                raise _Enough
            return kept  # asked for at once by a patch that takes a gradient of its own

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept)
        with torch.enable_grad(), self._autocast, self._guard(), contextlib.suppress(_Enough), hooks:
            inputs = [self._fresh(value) for value in self._inputs]
            positional = len(inputs) - len(self._names)
            self._forward(*inputs[:positional], **dict(zip(self._names, inputs[positional:], strict=True)))
        if len(self._made) < len(self._kinds):
            raise RuntimeError("A checkpointed block did not do the same again.")

    def _own(self, value: object) -> object:
        """An input as it is kept."""
        if self._copies is None or not isinstance(value, torch.Tensor):
            return value
        return self._copies(value).requires_grad_(value.requires_grad)

    def _fresh(self, value: object) -> object:
        """A kept input for one more run, which may write into it."""
        return value.clone() if self._copies is not None and isinstance(value, torch.Tensor) else value


def _version(value: object) -> int | None:
    """How often a tensor has been written into; inference tensors do not count it."""
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else None


def _kind(tensor: torch.Tensor) -> tuple:
    return tensor.shape, tensor.dtype, tensor.device


def _autocast_of(inputs: list) -> contextlib.AbstractContextManager:
    """The way back is often taken outside of the autocast that the forward ran in (in training, it is)."""
    kind = next(value.device.type for value in inputs if isinstance(value, torch.Tensor))
    if not torch.amp.is_autocast_available(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
