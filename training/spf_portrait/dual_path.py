"""One micro-batch through Eq. 1 to 12: the reference path and the response path of one network.

Distributed training can only average the gradients of a module whose forward it sees, so this is the module: its only
parameters are the adapters, and its forward is the losses. The frozen model hangs beside it, unregistered.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from ...backbone.attention import AttentionSites, BlockKey, Recording
from ...guidance.spf_portrait import align, control_map, enhance
from ...guidance.spf_portrait import objective as loss
from ..base import Base, Look
from .adapters import Adapters
from .config import Config
from .step import BASE, COMPLETE, NOTHING, Draw, Inputs, Text, chosen

TERMS = ("text", "fine", "enhance")
"""Beside the denoising loss."""

Parts = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""By name: a term's sum over the samples, and of how many it is."""


class Clip(Protocol):
    """An image tower and a text tower (clip.py)."""

    def image(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, E] of latents in the UNet's scale, differentiable."""

    def text(self, phrase: str) -> torch.Tensor:
        """[E]"""


class DualPath(nn.Module):
    """aligning: whether this is stage 2. factors: of TERMS, nan until `balance` sets them; a part of the state."""

    def __init__(self, base: Base, adapters: Adapters, config: Config, clip: Clip | None = None) -> None:
        super().__init__()
        self.adapters, self.config, self.aligning = adapters, config, False
        self.register_buffer("factors", torch.full((len(TERMS),), torch.nan))
        self._frozen = base, clip

    def forward(self, inputs: Inputs, chance: Draw) -> Parts:
        """The terms of a micro-batch."""
        return self._align(inputs, chance) if self.aligning else self._fit(inputs, chance)

    def total(self, parts: Parts) -> torch.Tensor:
        """Eq. 12, summed over the samples."""
        terms = {name: parts[name][0] for name in ("denoising", *TERMS) if name in parts}
        return loss.objective(terms, dict(zip(TERMS, self.factors, strict=True)))

    def _fit(self, inputs: Inputs, chance: Draw) -> Parts:
        """Stage 1: Eq. 2 alone."""
        base, _ = self._frozen
        path = torch.where(chance.dropped, NOTHING, COMPLETE)
        seen = self._look(inputs, chance, chosen(inputs.texts, path), AttentionSites((), ()))
        weights = inputs.weights.to(base.device)
        denoising = self._weighted(loss.denoising(seen.noise, chance.noise.to(base.device)), seen.sigma)
        return {"denoising": ((denoising * weights).sum(), weights.sum())}

    def _align(self, inputs: Inputs, chance: Draw) -> Parts:
        """Stage 2. On the null path (the target left out of both paths) the denoising loss is the distance from the
        reference's own prediction: the training picture shows what the text does not ask for."""
        base, clip = self._frozen
        weights, noise = inputs.weights.to(base.device), chance.noise.to(base.device)
        asked = chance.path == COMPLETE
        texts = chosen(inputs.texts, chance.path), chosen(inputs.texts, torch.where(asked, BASE, chance.path))
        reference, response = self._both(inputs, chance, texts, self._layers(inputs))
        gate = self._control(inputs, asked, texts[0], reference, response)
        goal = torch.where(asked.to(base.device)[:, None, None, None], noise, reference.noise)
        denoising = self._weighted(loss.denoising(response.noise, goal), response.sigma)
        text, fine = self._aligned(texts, reference.recording, response.recording, gate)
        parts = {
            "denoising": ((denoising * weights).sum(), weights.sum()),
            "text": ((text * weights).sum(), weights.sum()),
            "fine": ((fine * weights).sum(), weights.sum()),
        }
        if clip is not None:
            parts["enhance"] = self._enhanced(inputs, chance, response, asked)
        return parts | _reported(gate.cpu(), inputs, asked)

    def both(self, inputs: Inputs, chance: Draw) -> tuple[Look, Look]:
        """Reference path and response path with the base and the complete text, for the control map alone."""
        return self._both(inputs, chance, (inputs.texts[COMPLETE], inputs.texts[BASE]), self.coarse(inputs))

    def _both(
        self, inputs: Inputs, chance: Draw, texts: tuple[Text, Text], layers: tuple[BlockKey, ...]
    ) -> tuple[Look, Look]:
        """Eq. 1 and 3: one noisy latent, the original model on texts[1] and the tuned one on texts[0]."""
        sites = AttentionSites(cross=layers, self_=())
        with torch.no_grad(), self.adapters.off():
            reference = self._look(inputs, chance, texts[1], sites)
        return reference, self._look(inputs, chance, texts[0], sites)

    def _look(self, inputs: Inputs, chance: Draw, text: Text, sites: AttentionSites) -> Look:
        base, _ = self._frozen
        return base.look(inputs.latents, chance.noise, chance.timesteps, text.rows, text.pooled, sites)

    def _weighted(self, terms: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return terms * loss.weight(sigma, self.config.objective.weighting)

    def _layers(self, inputs: Inputs) -> tuple[BlockKey, ...]:
        base, _ = self._frozen
        return base.family.cross_attention() if self.config.objective.layers == "all" else self.coarse(inputs)

    def coarse(self, inputs: Inputs) -> tuple[BlockKey, ...]:
        """The layers of about 16x16 tokens, whose attention gives the phrases' maps."""
        base, _ = self._frozen
        return base.family.sites(base.family.feature_block(-1), tuple(inputs.latents.shape[-2:])).cross

    @torch.no_grad()
    def _control(
        self, inputs: Inputs, asked: torch.Tensor, text: Text, reference: Look, response: Look
    ) -> torch.Tensor:
        """S [B, h, w]; 0 on the null path."""
        settings = self.config.objective.control
        noise = control_map.difference(response.noise, reference.noise, settings.blur, settings.floor)
        looks = [coarse_attention(each.recording, self.coarse(inputs)) for each in (reference, response)]
        gate = torch.zeros_like(noise)
        for i in asked.nonzero().flatten().tolist():
            states = text.rows[i].to(noise.device)
            gate[i], *_ = control_map.fine_control(
                noise[i], looks[0][i], looks[1][i], states, inputs.phrases[i], inputs.targets[i], settings
            )
        return gate

    def _aligned(
        self, texts: tuple[Text, Text], reference: Recording, response: Recording, gate: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. 5 and 6: L_tc and L_fg [B], each the mean over the layers."""
        width = texts[0].rows.shape[1]
        places = torch.arange(width, device=gate.device)
        counts = [text.counts.to(gate.device)[:, None] for text in texts]
        base = (places > 0) & (places <= counts[1])  # what both texts begin with
        rest = tuple(places > count for count in counts)
        text, fine = [], []
        known, seen = reference.text_attention(), response.text_attention()
        before, now = reference.queries(), response.queries()
        for key in seen:
            inside = align.at_layer(gate, response.sizes[key])
            text.append(align.text_consistent(seen[key], known[key], inside, base, rest))
            fine.append(align.fine_grained(now[key], before[key], inside))
        return torch.stack(text).mean(0), torch.stack(fine).mean(0)

    def _enhanced(
        self, inputs: Inputs, chance: Draw, response: Look, asked: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. 11 of those samples for which it counts, at most a share of the batch."""
        base, clip = self._frozen
        counted = asked & enhance.counted(chance.timesteps, base.timesteps) & (inputs.weights > 0)
        most = max(1, round(self.config.enhance.share * len(asked)))
        rows = counted.nonzero().flatten()[:most]
        if not len(rows):
            zero = torch.zeros((), device=base.device)
            return zero, zero
        picture = enhance.one_step_picture(response.x[rows], response.noise[rows], response.sigma[rows])
        phrase = torch.stack([clip.text(inputs.wanted[i]) for i in rows.tolist()])
        if self.config.enhance.kind == "direct":
            terms = enhance.direct(clip.image(picture), phrase)
        else:
            with torch.no_grad():
                shown = clip.image(inputs.latents[rows].to(base.device))
            terms = enhance.response_enhancement(clip.image(picture), shown, phrase)
        return terms.sum(), torch.tensor(float(len(rows)), device=base.device)


def coarse_attention(recording: Recording, keys: tuple[BlockKey, ...]) -> torch.Tensor:
    """[B, h, w, columns]: the mean over layers of one size and over heads."""
    maps, sizes = recording.text_attention(), {recording.sizes[key] for key in keys if key in recording.sizes}
    (size,) = sizes
    return torch.stack([maps[key].view(len(maps[key]), *size, -1) for key in keys]).mean(0)


def _reported(gate: torch.Tensor, inputs: Inputs, asked: torch.Tensor) -> Parts:
    """How open the map is: all in all, and inside and outside of the attribute where the data tell its place."""
    good = asked & (inputs.weights > 0)
    told = good & ~inputs.places.isnan().any((1, 2))
    inside = inputs.places.nan_to_num()
    inner = (gate * inside).sum((1, 2)) / inside.sum((1, 2)).clamp_min(1)
    outer = (gate * (1 - inside)).sum((1, 2)) / (1 - inside).sum((1, 2)).clamp_min(1)
    named = {"map": (gate.mean((1, 2)), good), "map inside": (inner, told), "map outside": (outer, told)}
    return {name: ((value * rows).sum(), rows.sum().float()) for name, (value, rows) in named.items()}
