"""SPF-Portrait as the trainer sees it."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from ..base import Base
from ..data.dataset import Dataset
from ..data.index import BadSample
from ..data.plan import Slot
from ..files import digest_of
from ..task import Losses
from . import lora_file
from .adapters import Adapters
from .balance import factors, spread_out
from .clip import load_clip
from .config import Config
from .dual_path import TERMS, DualPath
from .pictures import Pictures, Sample, open_data, texts_of
from .sheets import sheet
from .step import Inputs, draw, gather

log = logging.getLogger(__name__)

EXPORT, JOINED = "lora.safetensors", "lora_joined.safetensors"
BALANCED = 16
"""Samples whose gradients set the balance of the terms."""
LOOKED = 100
"""Micro-batches of stage 2 after which the control map is judged."""
LEAST, MOST = 0.02, 0.5
"""How open the control map usually is, on average over the picture."""


class SpfTask:
    """What learns are the adapters of cross-attention; the base model stays as it is."""

    models = "loras"

    def __init__(self, config: Config, base: Base, data: Dataset | None = None) -> None:
        """data: what `open_data` gives, where it is not to be read anew."""
        self.config, self.base = config, base
        self.first, earlier = started(config, base)
        self.data = data or open_data(config, earlier)
        self.targets = targets_of(self.data.samples)
        self.adapters = Adapters(base.family.net, config.learn, config.rank, config.alpha, config.seed)
        self.keys = lora_file.keys_of(base.model, self.adapters.names)
        base.attach = self.adapters.attach
        base.let_go()
        self.model = DualPath(base, self.adapters, config, load_clip(config, base)).to(base.device)
        self._opened: list[float] = []
        self.stage = config.stages[0].name

    def begin(self, stage: int) -> None:
        self.stage = self.config.stages[stage].name
        self.model.aligning = self.stage == "align"
        if self.model.aligning and self.model.factors.isnan().any():
            self.model.factors.copy_(self._factors())
            told = ", ".join(f"{name} {value:.4g}" for name, value in zip(TERMS, self.model.factors, strict=True))
            log.info("Stage 2 weighs its terms by %s.", told)

    def _factors(self) -> torch.Tensor:
        """Of TERMS; every process computes the same."""
        objective, samples = self.config.objective, self.data.samples
        if objective.balance == "fixed":
            return torch.tensor([getattr(objective, name) for name in TERMS])
        (_, members), *_ = sorted(self.data.plan.members.items(), key=lambda item: -len(item[1]))
        slots = (Slot(number, -1, i) for i, number in enumerate(members))
        good = list(islice((sample for slot in slots if not (sample := samples[slot]).problem), BALANCED))
        if not good:
            raise ValueError(
                "None of the samples is good, so stage 2 cannot weigh its terms; skipped.json has the reasons."
            )
        micro, batches = min(self.config.micro_batch, len(good)), []
        for first in range(0, len(good), micro):
            inputs = self.gather(good[first : first + micro])
            chance = draw(inputs, self.base.timesteps, objective, self.config.seed)
            batches.append((inputs, spread_out(chance, first, len(good), self.base.timesteps)))
        return factors(self.model, batches)

    def gather(self, samples: Sequence[Sample]) -> Inputs:
        pictures: Pictures = self.data.samples
        return gather(samples, pictures, self.base)

    def losses(self, model: torch.nn.Module, inputs: Inputs) -> Losses:
        chance = draw(inputs, self.base.timesteps, self.config.objective, self.config.seed)
        parts = model(inputs, chance)
        if "map" in parts and float(parts["map"][1]):
            self._watch(float(parts["map"][0] / parts["map"][1]))
        return Losses(self.model.total(parts), {name: tuple(pair) for name, pair in parts.items()})

    def _watch(self, opened: float) -> None:
        """Say so once where the control map protects nothing, or everything."""
        if len(self._opened) == LOOKED:
            return
        self._opened.append(opened)
        mean = sum(self._opened) / LOOKED
        if len(self._opened) == LOOKED and not LEAST <= mean <= MOST:
            log.warning(
                "The control map is %.3f on average: %s; raise or lower objective.control.gain.", mean,
                "next to nothing is kept from alignment, and the attribute will be unlearnt" if mean < LEAST
                else "most of the picture is kept from alignment, and little will be preserved",
            )  # fmt: skip

    def terms(self) -> dict[str, object]:
        config = self.config
        return {
            "target": config.target,
            "fit": config.fit,
            "learn": config.learn,
            "rank": config.rank,
            "alpha": config.alpha,
            "start": digest_of(Path(config.start).expanduser())[:12] if config.start else None,
        }

    def export(self, step: int) -> Path:
        """The LoRA, checked against the loaded model before a byte is written, and joined with the one that it began
        from."""
        config, base = self.config, self.base
        state = lora_file.content(self.adapters, self.keys)
        lora_file.check(base.model, state, self.adapters.names)
        path = config.folder / EXPORT
        lora_file.save(path, state, lora_file.metadata(config, base, state, step, self.stage, self.targets))
        if self.first is not None:
            before, earlier = self.first
            both = lora_file.joined(before, state)
            shown = Counter(dict.fromkeys(earlier, 0))
            shown.update(self.targets)  # `|` would drop the zeros
            told = lora_file.metadata(config, base, both, step, self.stage, shown)
            lora_file.save(config.folder / JOINED, both, told)
        return path

    def sheet(self) -> torch.Tensor:
        state = lora_file.content(self.adapters, self.keys)
        return sheet(self.base, self.model, state, self.data.samples, self.config)

    def warning(self) -> str | None:
        if self.config.objective.null_path:
            return None
        return (
            "WARNING: without objective.null_path nothing tells the LoRA that a text without the target means none: it "
            "will draw the attribute whether asked or not."
        )


def targets_of(pictures: Pictures) -> Counter[str]:
    """How many pictures show each target."""
    found: Counter[str] = Counter()
    for entry in pictures.entries:
        with contextlib.suppress(BadSample):
            found[texts_of(entry.description(), pictures.target)[1].strip()] += 1
    return found


def started(config: Config, base: Base) -> tuple[tuple[lora_file.Tensors, list[str]] | None, list[str]]:
    """The LoRA that the run starts from, now a part of the original model, and its targets. ValueError where ComfyUI
    finds no place for it, or where it cannot be joined with a new one."""
    if config.start is None:
        return None, []
    import comfy.lora

    state, targets = lora_file.load(Path(config.start).expanduser())
    known = comfy.lora.model_lora_keys_unet(base.model.model, {})
    if not comfy.lora.load_lora(dict(state), known, log_missing=False):
        raise ValueError(f"{config.start} fits no layer of this checkpoint: give a LoRA of the same family.")
    try:
        state = lora_file.renamed(base.model, state)
    except ValueError as error:
        raise ValueError(
            f"{config.start} cannot be joined with another LoRA ({error}); start from a plain one."
        ) from None
    base.model = lora_file.patched(base.model, state)
    return (state, targets), targets
