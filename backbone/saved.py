"""What autograd keeps of a private pass where another pack's patch writes in place into it (FreeU V2 does): copies.

Autograd keeps the tensors themselves and refuses the way back when one has been written into since. PyTorch's own
`allow_mutation_on_saved_tensors` knows tensors by the address of their data, and once that memory is used again it may
give back another tensor; a copy cannot be mistaken for anything.
"""

from __future__ import annotations

import contextlib

import torch

WORDS = "modified by an inplace operation"
"""Autograd's own."""


def overwritten(error: RuntimeError) -> bool:
    """Whether an error says that what the way back needs has been written into."""
    return WORDS in str(error)


class Copies:
    """Copies all that autograd saves, except the weights of a loaded module: nobody writes into them, and copies would
    be as large as the model. They are known by their memory, which is theirs for as long as the module lives."""

    def __init__(self, module: torch.nn.Module) -> None:
        tensors = (*module.parameters(), *module.buffers())
        self._weights = {_memory(tensor) for tensor in tensors if _plain(tensor)}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor without gradient that nobody else holds; a weight itself."""
        if not _plain(tensor) or _memory(tensor) in self._weights:
            return tensor.detach()
        return tensor.detach().clone()

    def saving(self) -> contextlib.AbstractContextManager:
        """Context of the forward whose saved tensors are to be copies."""
        return torch.autograd.graph.saved_tensors_hooks(self, lambda kept: kept)


def _plain(tensor: torch.Tensor) -> bool:
    """Not of a quantised class, whose memory is not its own: such tensors are weights."""
    return type(tensor) in (torch.Tensor, torch.nn.Parameter)


def _memory(tensor: torch.Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()
