"""What learns: additions to the attention's matrices, in the UNet's private tree.

The loaded model is never touched. Switched off, the same network is the original, which is the reference path: no
second UNet is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
"""Of each attention."""


class LowRank(nn.Module):
    """LoRA: alpha / rank * up @ down. `down` begins at random and `up` at zero."""

    def __init__(self, inputs: int, outputs: int, rank: int, alpha: float, random: torch.Generator) -> None:
        super().__init__()
        self.alpha, self.scale = alpha, alpha / rank
        self.down = nn.Parameter(torch.randn(rank, inputs, generator=random) / rank)
        self.up = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype)) * self.scale

    def content(self) -> dict[str, torch.Tensor]:
        """Its tensors as files name them."""
        return {"lora_down.weight": self.down, "lora_up.weight": self.up, "alpha": torch.tensor(float(self.alpha))}


class FullRank(nn.Module):
    """All of a matrix: what is added to it, from zero."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros(outputs, inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.change.to(x.dtype))

    def content(self) -> dict[str, torch.Tensor]:
        return {"diff": self.change}


class _Adapted(nn.Module):
    """A layer of the private tree with an addition, which is no submodule: the tree's weights are let go of, the
    addition's are not."""

    def __init__(self, inner: nn.Module, addition: nn.Module, adapters: Adapters) -> None:
        super().__init__()
        self.inner = inner
        self.__dict__["added"] = addition, adapters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        addition, adapters = self.__dict__["added"]
        return self.inner(x) + addition(x) if adapters.on else self.inner(x)


class Adapters(nn.Module):
    """The additions of all attentions of one kind in a UNet, by the layers' names with underscores.

    on: read at each call, so a pass that checkpointing computes again has to find it as it was.
    """

    def __init__(
        self, net: nn.Module, learn: str, rank: int, alpha: float, seed: int, attention: str = "attn2"
    ) -> None:
        """net: the loaded UNet, of which only names and shapes are read. attention: "attn2" is cross-attention, "attn1"
        self-attention."""
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        shapes = {name: weight.shape for name, weight in net.named_parameters() if weight.ndim == 2}
        attentions = [name for name, _ in net.named_modules() if name.endswith(attention)]
        self.names = [f"{attention}.{layer}" for attention in attentions for layer in LAYERS]
        self.additions = nn.ModuleDict()
        for name in self.names:
            outputs, inputs = shapes[f"{name}.weight"]
            lora = learn == "lora"
            addition = LowRank(inputs, outputs, rank, alpha, random) if lora else FullRank(inputs, outputs)
            self.additions[name.replace(".", "_")] = addition
        self.on = True

    def attach(self, net: nn.Module) -> None:
        """Put the additions into a private tree of the UNet."""
        for name in self.names:
            parent, _, last = name.rpartition(".")
            layers = net.get_submodule(parent)._modules
            layers[last] = _Adapted(layers[last], self.additions[name.replace(".", "_")], self)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The original model, for as long as the block lasts."""
        before, self.on = self.on, False
        try:
            yield
        finally:
            self.on = before

    def content(self, name: str) -> dict[str, torch.Tensor]:
        """A layer's tensors as files name them."""
        return self.additions[name.replace(".", "_")].content()
