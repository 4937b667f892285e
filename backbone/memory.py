"""The memory of devices: whether it ran out, and uploads into it."""

from __future__ import annotations

import torch

OUT_OF_MEMORY = torch.cuda.OutOfMemoryError
"""Exists in every build of PyTorch, and is the very class that newer ones call torch.OutOfMemoryError."""


WORDS = (
    "out of memory",
    "can't allocate memory",  # a CPU's
    "not enough memory",  # a CPU's on Windows
    "alloc_failed",  # cuBLAS, cuDNN
    "unable to find an engine",  # cuDNN, where none has room for its workspace
    "not enough gpu video memory",  # DirectML
    "out_of_device_memory",  # Level Zero
)
"""Of errors without a class of their own."""


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device's memory ran out.

    CUDA, ROCm and XPU have a class for it; other backends have only words, and so has a kernel or a library that fails
    after its launch. Newer cores know some, and clear what such a kernel leaves pending.
    """
    import comfy.model_management

    is_oom = getattr(comfy.model_management, "is_oom", None)
    if is_oom is not None and is_oom(error):
        return True
    return isinstance(error, OUT_OF_MEMORY) or any(words in str(error).lower() for words in WORDS)


def upload(small: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A mask or a list of indices from the CPU to a device. CUDA is not waited for; Metal must be, for it may read the
    memory later than Python keeps it."""
    return small.to(device, non_blocking=device.type == "cuda")
