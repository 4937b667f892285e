"""Other packs' patches inside a private pass: one that cuts the gradient is refused instead of guiding with half of it.

A kernel such as SageAttention's returns tensors that autograd knows nothing of. UNet blocks add what attention gives to
what goes around it, so a gradient still arrives, without attention's share, and nobody would notice.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch

NEEDS = "RB-Guidance needs a gradient through the model, and another node's"
"""How a refusal begins."""


def watch_patches(options: dict) -> None:
    """Have every patch of a private copy of transformer_options say so when it cuts the gradient: replacements of
    attention, and the lists of patches on blocks and around attention."""
    tables, lists = options.get("patches_replace", {}), options.get("patches", {})
    options["patches_replace"] = {
        kind: {key: watched(patch) for key, patch in table.items()} for kind, table in tables.items()
    }
    options["patches"] = {name: [watched(patch) for patch in patches] for name, patches in lists.items()}


def watched(patch: Callable) -> Callable:
    """The same patch. It raises ValueError, a sentence for the user, where what it was given needs a gradient and what
    it returns has none: attention's result for q, k and v, or of several results the first for the first given (h)."""
    if not callable(patch):  # one kind is a pair: a layer's class and what to call for it
        return patch

    def run(*args: object, **kwargs: object) -> object:
        result = patch(*args, **kwargs)
        first = result[0] if isinstance(result, (list, tuple)) else result
        given = args if first is result else args[:1]
        cut = isinstance(first, torch.Tensor) and not first.requires_grad
        if cut and _has_gradient(given):
            raise ValueError(
                f"{NEEDS} patch ({_origin(patch)}) cuts it off, as SageAttention and ComfyUI's int8 attention do; turn "
                "that attention off (in that node, or start ComfyUI without --use-sage-attention or "
                "--use-ck-attention), or bypass that node."
            )
        return result

    return run


def _has_gradient(values: tuple) -> bool:
    return any(isinstance(value, torch.Tensor) and value.requires_grad for value in values)


def _origin(patch: Callable) -> str:
    """Which pack a patch is from: its module, which for custom nodes begins with the path of their folder."""
    named = patch if hasattr(patch, "__qualname__") else type(patch)
    return re.split(r"[\\/]", f"{named.__module__}.{named.__qualname__}")[-1]
