"""How much the terms of stage 2 weigh: set once, from gradients, so that no number has to be found for each model."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...guidance.spf_portrait.objective import balanced
from .dual_path import TERMS, DualPath
from .step import COMPLETE, Draw, Inputs


def spread_out(chance: Draw, first: int, count: int, timesteps: int) -> Draw:
    """The same with the target in every text, and with timesteps evenly over all there are. first: the number of the
    micro-batch's first sample among `count`."""
    places = (torch.arange(len(chance.path)) + first + 0.5) / count
    return replace(chance, path=torch.full_like(chance.path, COMPLETE), timesteps=(places * timesteps).long())


def norms(model: DualPath, batches: list[tuple[Inputs, Draw]]) -> dict[str, float]:
    """The length of each term's gradient over all batches together."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    sums: dict[str, list[torch.Tensor]] = {}
    for inputs, chance in batches:
        parts = model(inputs, chance)
        for name in ("denoising", *TERMS):
            if name in parts and parts[name][0].requires_grad:
                found = torch.autograd.grad(parts[name][0], weights, retain_graph=True, allow_unused=True)
                found = [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]
                sums[name] = [a + b for a, b in zip(sums[name], found, strict=True)] if name in sums else found
    return {name: float(torch.stack([g.square().sum() for g in found]).sum().sqrt()) for name, found in sums.items()}


def factors(model: DualPath, batches: list[tuple[Inputs, Draw]]) -> torch.Tensor:
    """Of TERMS."""
    wanted = {name: getattr(model.config.objective, name) for name in TERMS}
    found = balanced(norms(model, batches), wanted)
    return torch.tensor([found[name] for name in TERMS])
