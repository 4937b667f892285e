"""PureCC's objective on the same two paths: the rival by SPF-Portrait's own authors (arXiv 2603.07561), from its text.

The tuned model's prediction is pulled to its own on the base text plus the target's direction, which the model of
stage 1 tells: what it predicts for the target alone and for no text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...backbone.attention import AttentionSites
from ...guidance.spf_portrait import objective as loss
from ...training.base import Base
from ...training.data.dataset import Dataset
from ...training.spf_portrait.adapters import Adapters
from ...training.spf_portrait.config import Config
from ...training.spf_portrait.dual_path import DualPath, Parts
from ...training.spf_portrait.step import BASE, COMPLETE, NOTHING, Draw, Inputs, Text
from ...training.spf_portrait.task import SpfTask

ETA = 1.0
"""Best in the paper's table."""
WEIGHT = 2.0
"""Of the term beside the denoising loss, as in its code."""
CHANGES = {
    "objective.balance": "fixed", "objective.text": WEIGHT, "objective.fine": 0.0, "objective.enhance": 0.0,
    "objective.null_path": 0.0, "enhance.kind": "none",
}  # fmt: skip


def goal(
    complete: torch.Tensor, base: torch.Tensor, target: torch.Tensor, empty: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """eps(base) + eta lambda* R_tar with R_tar = eps_1(target) - eps_1(empty) and lambda* = <R, R_tar> / |R_tar|^2, R =
    eps(complete) - eps(base): all predictions [B, C, h, w]."""
    direction, own = (target - empty).flatten(1), (complete - base).flatten(1)
    share = (own * direction).sum(1) / direction.square().sum(1).clamp_min(1e-12)
    return base + ETA * share.view(-1, 1, 1, 1) * (target - empty)


class PureDualPath(DualPath):
    """Stage 2 by PureCC. The weights of stage 1 are buffers, and so a part of the state."""

    def __init__(self, base: Base, adapters: Adapters, config: Config) -> None:
        super().__init__(base, adapters, config)
        for number, weight in enumerate(adapters.parameters()):
            self.register_buffer(f"before{number}", torch.zeros_like(weight))
        self.phrases: dict[str, torch.Tensor] = {}

    def remember(self) -> None:
        """The adapters as they are now."""
        for number, weight in enumerate(self.adapters.parameters()):
            self.get_buffer(f"before{number}").copy_(weight.detach())

    @contextmanager
    def _stage_one(self) -> Iterator[None]:
        now = [weight.data for weight in self.adapters.parameters()]
        for number, weight in enumerate(self.adapters.parameters()):
            weight.data = self.get_buffer(f"before{number}")
        try:
            yield
        finally:
            for weight, data in zip(self.adapters.parameters(), now, strict=True):
                weight.data = data

    def _align(self, inputs: Inputs, chance: Draw) -> Parts:
        base, _ = self._frozen
        none = AttentionSites((), ())
        weights, noise = inputs.weights.to(base.device), chance.noise.to(base.device)
        alone = [self.phrases[phrase] for phrase in inputs.wanted]
        target = Text(torch.stack([each.rows for each in alone]), torch.stack([each.pooled for each in alone]),
                      inputs.texts[COMPLETE].counts)  # fmt: skip
        with torch.no_grad():
            own = self._look(inputs, chance, inputs.texts[BASE], none).noise
            with self._stage_one():
                told = [self._look(inputs, chance, each, none).noise for each in (target, inputs.texts[NOTHING])]
        response = self._look(inputs, chance, inputs.texts[COMPLETE], none)
        wanted = goal(response.noise.detach(), own, *told)
        terms = {
            "denoising": self._weighted(loss.denoising(response.noise, noise), response.sigma),
            "text": self._weighted(loss.denoising(response.noise, wanted), response.sigma),
        }
        return {name: ((term * weights).sum(), weights.sum()) for name, term in terms.items()}


class PureTask(SpfTask):
    """The same adapters, data and file, with PureCC in stage 2."""

    def __init__(self, config: Config, base: Base, data: Dataset | None = None) -> None:
        super().__init__(config, base, data)
        self.model = PureDualPath(base, self.adapters, config).to(base.device)

    def begin(self, stage: int) -> None:
        fresh = self.model.factors.isnan().any()
        super().begin(stage)
        if self.model.aligning:
            self.model.phrases = {phrase: self.base.plain_text(phrase) for phrase in self.targets}
            if fresh:
                self.model.remember()
