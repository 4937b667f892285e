"""The loop: many processes or one, interrupted or not, the same weights come out."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.nn.parallel import DistributedDataParallel

from ..data.dataset import Dataset, skip_table
from ..data.index import digest
from ..data.samples import MicroBatches, Sample, loader
from . import state as disk
from .base import Base
from .config import Config
from .pretrained import make_encoder
from .step import Inputs, gather, losses

log = logging.getLogger(__name__)

JUDGED_AFTER = 64
"""Samples that have to be seen before a run may stop because over half of them are bad."""
REMEMBERED = 1024
"""How many samples are judged at most, the older ones counting less: data that vanish late are noticed soon."""


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
        self.skipped: dict[int, str] = {}
        """Why samples were bad, by number."""
        self.seen = self.bad = 0.0
        """How many samples, lately."""
        self.folder = Path(config.out).expanduser()
        entries, homes = data.samples.entries, data.samples.homes
        order = [(each.key, each.width, each.height, home) for each, home in zip(entries, homes, strict=True)]
        self.order = f"{len(order)} samples ({digest(json.dumps(order))})"

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

    def batches(self, start: int, end: int) -> Iterator[Iterator[list[Sample]]]:
        """This process's micro-batches of each global batch, read one by one: a tensor from a worker is an open file
        for as long as it lives."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        order = MicroBatches(self.data.plan, start, end, self.micro, process, processes)
        count = math.ceil(self.config.batch / processes / self.micro)
        read = iter(loader(self.data.samples, order))
        for _ in range(start, end):
            yield islice(read, count)

    def step(self, parts: Iterable[list[Sample]]) -> dict[str, float]:
        """One optimiser step on a global batch, of which `parts` are this process's micro-batches; what to report."""
        config, clock, accelerator = self.config, self.clock, self.accelerator
        inputs = [gather(part, self.base) for part in parts]
        for each in inputs:
            self.skipped |= each.problems
        good, seen = sum(float(each.weights.sum()) for each in inputs), sum(len(each.slots) for each in inputs)
        good, seen = self._sum(good, seen)
        self._judge(seen, seen - good)
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
        # Several processes' gradients lie in the buckets that are sent; new ones beside them would be a second copy.
        self.optimizer.zero_grad(set_to_none=not isinstance(self.model, DistributedDataParallel))
        clock.step += 1
        own = clock.own_time() if accelerator.is_main_process else 0.0
        total, denoising, localisation, located, spent = self._sum(*sums, own)
        clock.spent += spent
        return {
            "loss": total / max(good, 1), "denoising": denoising / max(good, 1),
            "localisation": localisation / max(located, 1), "gradient": float(norm), "rate": rate,
            "skipped": seen - good, "seconds": spent,
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

    def _judge(self, seen: float, bad: float) -> None:
        """Stop, in every process at the same step, when over half of all samples are bad: those that the index left
        out, and of the others the share that was bad lately."""
        kept = min(1.0, REMEMBERED / (self.seen + seen))
        self.seen, self.bad = kept * (self.seen + seen), kept * (self.bad + bad)
        left, read = self.data.problems.total(), len(self.data.samples.entries)
        share = (left + read * self.bad / self.seen) / (left + read)
        if self.seen >= min(JUDGED_AFTER, read) and share > 0.5:
            raise SystemExit(
                f"{share:.0%} of the samples were bad ({left} of {left + read} by the index, and of the others "
                f"{self.bad / self.seen:.0%} when they were read), so the run stops; mend the shards.\n"
                + skip_table(self.reasons())
            )

    def reasons(self) -> Counter[str]:
        """Skipped samples by reason, the index's among them, each counted once. Every process has to call."""
        return self.data.problems + Counter(self._all_skipped().values())

    def _all_skipped(self) -> dict[int, str]:
        together: dict[int, str] = {}
        for each in gather_object([self.skipped]):
            together |= each
        return together

    # On disk

    def save(self) -> Path:
        """State, export and the table of reasons; every process has to call."""
        skipped = self._all_skipped()
        if self.accelerator.is_main_process:
            reasons = self.data.problems + Counter(skipped.values())
            state = {
                "encoder": self.encoder.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.values,
                "spent": self.clock.spent,
                "seen": self.seen,
                "bad": self.bad,
                "skipped": skipped,
                "terms": self.terms(),
            }
            disk.save_state(self.folder, self.clock.step, state, self.config.keep)
            disk.write_encoder(self.folder, self.encoder, self.average, self.clock.step, self.made())
            (self.folder / "skipped.json").write_text(json.dumps(dict(reasons), indent=1), encoding="utf-8")
        self.accelerator.wait_for_everyone()
        return self.folder / disk.EXPORT

    def made(self) -> dict[str, object]:
        """How the encoder came about, for who finds its file; the same for equal runs."""
        config = self.config
        return {
            "objective.eta": config.objective.eta,
            "samples": self.clock.step * config.batch,
            "checkpoint": Path(config.checkpoint).name,
        }

    def resume(self) -> bool:
        """Go on from the newest state of the run's folder, if there is one.

        ValueError if it is of a run with other terms.
        """
        found = disk.load_state(self.folder)
        if found is None:
            return False
        now = self.terms()
        for name, before in found.get("terms", {}).items():
            if before != now[name]:
                raise ValueError(
                    f"The run in {self.folder} was begun with {name} {before}, but is to go on with {now[name]}: give "
                    "what it had, or choose another --out."
                )
        self.encoder.load_state_dict(found["encoder"])
        self.optimizer.load_state_dict(found["optimizer"])
        for value, saved in zip(self.average.values, found["average"], strict=True):
            value.copy_(saved)
        self.clock.step, self.clock.spent = found["step"], found["spent"]
        self.seen, self.bad = found["seen"], found["bad"]
        self.skipped = dict(found.get("skipped", {}))
        return True

    def terms(self) -> dict[str, object]:
        """What a run cannot change on its way, as plain values: what its order hangs on, and its weights' shapes."""
        config = self.config
        return {
            "seed": config.seed,
            "batch": config.batch,
            "encoder": json.dumps(asdict(self.encoder.config)),
            "trainable_layers": config.trainable_layers,
            "ema": config.ema,
            "data.reference": config.data.reference,
            "data.face_labels": list(config.data.face_labels),
            "data": self.order,
        }
