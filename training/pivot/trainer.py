"""The loop: many processes or one, interrupted or not, the same weights come out."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ...models.pivot_encoder import FAMILIES, PivotConfig, PivotEncoder
from . import state as disk
from .base import Base
from .config import Config
from .dataset import Dataset, skip_table
from .samples import MicroBatches, Sample, loader
from .step import Inputs, gather, losses

log = logging.getLogger(__name__)

JUDGED_AFTER = 64
"""Samples that have to be seen before a run may stop because over half of them are bad."""


def make_encoder(config: Config, text_width: int) -> PivotEncoder:
    """A new encoder, the same for the same seed, with the pretrained tower if the config names one."""
    dims = FAMILIES[config.family] or (text_width,)
    if sum(dims) != text_width:
        raise ValueError(
            f"The config is for {config.family}, whose text is {sum(dims)} wide, but this checkpoint's is "
            f"{text_width}: choose the config of its family."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = PivotEncoder(PivotConfig(config.family, dims, config.tower, config.fusion))
    if config.pretrained:
        encoder.load_pretrained_tower(_read_tower(Path(config.pretrained).expanduser()))
    encoder.train_layers(config.trainable_layers)
    return encoder


def _read_tower(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ValueError(f"There is no file {path}: pretrained must be an open_clip checkpoint of the image tower.")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(str(path))
    return torch.load(path, map_location="cpu", weights_only=True)


@dataclass
class Clock:
    """Where the run is. minutes: the training time after which it ends, or None. spent: seconds in all pieces."""

    steps: int
    minutes: float | None = None
    step: int = 0
    spent: float = 0.0
    _last: float = field(default_factory=time.monotonic)

    @property
    def share(self) -> float:
        share = self.step / self.steps
        return min(1.0, share if self.minutes is None else max(share, self.spent / (60 * self.minutes)))

    def start(self) -> None:
        """What was since the last step does not count: loading, saving, sheets."""
        self._last = time.monotonic()

    def own_time(self) -> float:
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        return elapsed


def learning_rate(config: Config, step: int, share: float) -> float:
    """Linear over the warm-up, then constant (the paper), or a cosine down to rate * rate_end."""
    cosine = config.rate_end + (1 - config.rate_end) * 0.5 * (1 + math.cos(math.pi * share))
    return config.rate * cosine * min(1.0, (step + 1) / max(config.warmup, 1))


class Trainer:
    """One run of one config; `run` returns the exported file."""

    def __init__(self, config: Config, accelerator: Accelerator, base: Base, data: Dataset, minutes: float | None):
        processes = accelerator.num_processes
        if config.batch % processes:
            raise ValueError(f"batch is {config.batch}, which {processes} processes cannot share: use a multiple.")
        self.config, self.accelerator, self.base, self.data = config, accelerator, base, data
        self.micro = min(config.micro_batch, config.batch // processes)
        self.encoder = make_encoder(config, base.text_width).to(base.device)
        learning = [weight for weight in self.encoder.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=config.rate, weight_decay=config.weight_decay)
        self.average = disk.Average(self.encoder, config.ema)
        self.model, self.optimizer = accelerator.prepare(self.encoder, optimizer)
        self.clock = Clock(config.steps, minutes)
        self.skipped: Counter[str] = Counter()
        self.seen = self.bad = 0
        self.folder = Path(config.out).expanduser()

    # The loop

    def run(self, reporter: object | None = None, stop_at: int | None = None) -> Path:
        """Train to the end (or to step `stop_at`, leaving a state). reporter: sees each step on the main process.

        SystemExit with the table of reasons when over half of the samples turn out bad.
        """
        last = min(self.config.steps, stop_at or self.config.steps)
        clock, config = self.clock, self.config
        batches = self.batches(clock.step, last)
        clock.start()
        while clock.step < last and clock.share < 1:
            numbers = self.step(next(batches))
            if reporter is not None:
                reporter.step(clock.step, numbers)
            if clock.step % config.save_every == 0 and clock.step < last:
                self.save()
            if reporter is not None and clock.step % config.report_every == 0:
                reporter.sheets(clock.step)
            clock.start()
        return self.save()

    def batches(self, start: int, end: int) -> Iterator[list[list[Sample]]]:
        """This process's micro-batches of each global batch."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        order = MicroBatches(self.data.plan, start, end, self.micro, process, processes)
        count = math.ceil(self.config.batch / processes / self.micro)
        read = iter(loader(self.data.samples, order))
        for _ in range(start, end):
            yield [next(read) for _ in range(count)]

    def step(self, parts: list[list[Sample]]) -> dict[str, float]:
        """One optimiser step on a global batch, of which `parts` are this process's micro-batches; what to report."""
        config, clock, accelerator = self.config, self.clock, self.accelerator
        inputs = [gather(part, self.base, self.skipped) for part in parts]
        good, seen = sum(float(each.weights.sum()) for each in inputs), sum(len(each.slots) for each in inputs)
        good, seen = self._sum(good, seen)
        self.seen, self.bad = self.seen + int(seen), self.bad + int(seen - good)
        self._judge()
        rate = learning_rate(config, clock.step, clock.share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sums = self._backward(inputs, max(good, 1.0))
        norm = torch.zeros(())
        if good:
            norm = accelerator.clip_grad_norm_(self.model.parameters(), config.clip)
            if torch.isfinite(norm):
                self.optimizer.step()
                self.average.update(clock.step)
        self.optimizer.zero_grad(set_to_none=True)
        clock.step += 1
        own = clock.own_time() if accelerator.is_main_process else 0.0
        total, denoising, localisation, located, spent = self._sum(*sums, own)
        clock.spent += spent
        return {
            "loss": total / max(good, 1), "denoising": denoising / max(good, 1),
            "localisation": localisation / max(located, 1), "gradient": float(norm), "rate": rate,
            "skipped": float(self.bad), "seconds": spent,
        }  # fmt: skip

    def _backward(self, inputs: list[Inputs], good: float) -> list[float]:
        """Gradients of the global batch's mean; the sums of this process's losses.

        Distributed training averages gradients over the processes, so each scales its part by their number.
        """
        sums = [0.0] * 4
        processes = self.accelerator.num_processes
        for number, each in enumerate(inputs):
            more = number < len(inputs) - 1
            with self.accelerator.no_sync(self.model) if more else contextlib.nullcontext():
                found = losses(self.model, each, self.base, self.config.objective, self.config.seed)
                self.accelerator.backward(found.total * (processes / good))
            values = (found.total.detach(), found.denoising.detach(), found.localisation.detach(), found.located)
            sums = [before + float(value) for before, value in zip(sums, values, strict=True)]
        return sums

    def _sum(self, *numbers: float) -> list[float]:
        values = torch.tensor(numbers, dtype=torch.float64 if self.base.device.type != "mps" else torch.float32)
        return self.accelerator.reduce(values.to(self.base.device), "sum").tolist()

    # Bad samples

    def _judge(self) -> None:
        """Stop, in every process at the same step, when over half of what was read is bad."""
        if self.seen >= min(JUDGED_AFTER, len(self.data.samples.entries)) and self.bad > self.seen / 2:
            raise SystemExit(
                f"{self.bad} of {self.seen} samples were bad, so the run stops; mend the shards.\n"
                + skip_table(self.reasons())
            )

    def reasons(self) -> Counter[str]:
        """Skipped samples of all processes by reason, the index's among them. Every process has to call."""
        total = Counter(self.data.problems)
        for counted in gather_object([dict(self.skipped)]):
            total.update(counted)
        return total

    # On disk

    def save(self) -> Path:
        """State, export and the table of reasons; every process has to call."""
        reasons = self.reasons()
        if self.accelerator.is_main_process:
            state = {
                "encoder": self.encoder.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.values,
                "spent": self.clock.spent,
                "seen": self.seen,
                "bad": self.bad,
                "reasons": dict(reasons - self.data.problems),
            }
            disk.save_state(self.folder, self.clock.step, state, self.config.keep)
            disk.write_encoder(self.folder, self.encoder, self.average, self.clock.step)
            (self.folder / "skipped.json").write_text(json.dumps(dict(reasons), indent=1), encoding="utf-8")
        self.accelerator.wait_for_everyone()
        return self.folder / disk.EXPORT

    def resume(self) -> bool:
        """Go on from the newest state of the run's folder, if there is one."""
        found = disk.load_state(self.folder)
        if found is None:
            return False
        self.encoder.load_state_dict(found["encoder"])
        self.optimizer.load_state_dict(found["optimizer"])
        for value, saved in zip(self.average.values, found["average"], strict=True):
            value.copy_(saved)
        self.clock.step, self.clock.spent = found["step"], found["spent"]
        self.seen, self.bad = found["seen"], found["bad"]
        if self.accelerator.is_main_process:
            self.skipped.update(found["reasons"])
        return True
