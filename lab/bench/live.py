"""How much memory a computation holds at its highest, counted tensor by tensor, on any device or none."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveMemory(TorchDispatchMode):
    """Inside, counts the bytes of all storages that operations make, as long as anything (autograd too) holds them.

    now, peak: bytes. What was there before does not count, nor does what a kernel uses for itself. torch.distributed
    has a MemTracker, but it does not take modules whose weights have no gradient.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        for each in tree_iter((args, kwargs)):
            self._see(each, 0)
        result = func(*args, **(kwargs or {}))
        for each in tree_iter(result):
            self._see(each, None)
        return result

    def _see(self, value: object, size: int | None) -> None:
        """size: what it counts if nobody has seen its storage yet; None is all of it."""
        if not isinstance(value, torch.Tensor):
            return
        storage = value.untyped_storage()
        key = id(storage)  # PyTorch keeps the object as long as the memory
        if key in self._known:
            return
        size = storage.nbytes() if size is None else size
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
