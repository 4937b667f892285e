"""The loop of every task: many processes or one, interrupted or not, the same weights come out."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel

from .data.samples import MicroBatches, Sample, loader
from .files import digest, write_whole
from .loop import Average, Budget, learning_rate, load_state, save_state, set_rate
from .skipped import Skipped
from .stages import Stages
from .task import Inputs, Task


def states(folder: Path) -> list[Path]:
    """The states of a run's folder, oldest first."""
    return sorted((folder / "states").glob("*.pt"))


def save_newest(folder: Path, step: int, parts: dict[str, object], terms: dict[str, object], keep: int) -> None:
    """Write a step's state into a run's folder, then drop all but the last `keep`."""
    for left in (folder / "states").glob("*.part"):  # by a process that was killed while it wrote
        left.unlink()
    save_state(folder / "states" / f"{step:09d}.pt", parts, terms)
    for old in states(folder)[:-keep]:
        old.unlink()


class Trainer:
    """One run of one task; `run` returns the exported file."""

    def __init__(self, task: Task, accelerator: Accelerator, minutes: float | None) -> None:
        config, processes = task.config, accelerator.num_processes
        if config.batch % processes:
            raise ValueError(f"batch is {config.batch}, which {processes} processes cannot share: use a multiple.")
        self.task, self.config, self.accelerator = task, config, accelerator
        self.micro = min(config.micro_batch, config.batch // processes)
        learning = [weight for weight in task.model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=config.rate, weight_decay=config.weight_decay)
        self.average = Average(learning, config.ema)
        self.model, self.optimizer = accelerator.prepare(task.model, optimizer)
        self.clock, self.stages = Budget(minutes, config.steps), Stages(config.stages)
        entries, homes = task.data.samples.entries, task.data.samples.homes
        self.skipped = Skipped(task.data.problems, len(entries))
        order = [(each.key, each.width, each.height, home) for each, home in zip(entries, homes, strict=True)]
        self.order = f"{len(order)} samples ({digest(json.dumps(order))})"

    # The loop

    def run(self, reporter: object | None = None, stop_at: int | None = None) -> Path:
        """Train to the end (or to step `stop_at`, leaving a state). reporter: sees each step on the main process.

        SystemExit with the table of reasons when over half of the samples turn out bad.
        """
        last = min(self.config.steps, stop_at or self.config.steps)
        clock, config = self.clock, self.config
        self.task.begin(self.stages.number)
        batches = self.batches(clock.step, last)
        clock.start()
        while clock.step < last and not clock.done:
            while self.stages.over(clock.share):
                self._keep(self.save())
                self.next_stage()
                clock.skip()
            numbers = self.step(next(batches))
            if reporter is not None:
                reporter.step(clock.step, numbers)
            if clock.step % config.save_every == 0 and clock.step < last:
                self.save()
            if reporter is not None and clock.step % config.report_every == 0:
                reporter.sheets(clock.step)
            clock.skip()
        return self.save()

    def next_stage(self) -> None:
        """Go on from the averaged weights of the last stage, with a new optimiser."""
        self.average.swap()
        self.average.restart()
        self.optimizer.state.clear()
        self.stages.next(self.clock.step)
        self.task.begin(self.stages.number)

    def batches(self, start: int, end: int) -> Iterator[Iterator[list[Sample]]]:
        """This process's micro-batches of each global batch, read one by one: a tensor from a worker is an open file
        for as long as it lives."""
        process, processes, data = self.accelerator.process_index, self.accelerator.num_processes, self.task.data
        order = MicroBatches(data.plan, start, end, self.micro, process, processes)
        count = math.ceil(self.config.batch / processes / self.micro)
        read = iter(loader(data.samples, order))
        for _ in range(start, end):
            yield islice(read, count)

    def step(self, parts: Iterable[list[Sample]]) -> dict[str, float]:
        """One optimiser step on a global batch, of which `parts` are this process's micro-batches; what to report: the
        loss and its parts, then `gradient` (its norm), `rate`, `skipped` (samples) and `seconds`."""
        config, clock, accelerator = self.config, self.clock, self.accelerator
        inputs = [self.task.gather(part) for part in parts]
        for each in inputs:
            self.skipped.found |= each.problems
        good, seen = sum(float(each.weights.sum()) for each in inputs), sum(len(each.slots) for each in inputs)
        good, seen = self._sum(good, seen)
        self.skipped.judge(seen, seen - good)
        stage, step = self.stages, clock.step - self.stages.first
        rate = learning_rate(stage.share(clock.share), step, stage.stage.rate, config.warmup, config.rate_end)
        set_rate(self.optimizer, rate)
        total, terms = self._backward(inputs, max(good, 1.0))
        norm = torch.zeros(())
        if good:
            norm = accelerator.clip_grad_norm_(self.model.parameters(), config.clip)
            if torch.isfinite(norm):
                self.optimizer.step()
                self.average.update(step)
        # Several processes' gradients lie in the buckets that are sent; new ones beside them would be a second copy.
        self.optimizer.zero_grad(set_to_none=not isinstance(self.model, DistributedDataParallel))
        own = clock.lap() if accelerator.is_main_process else 0.0
        total, spent, *sums = self._sum(total, own, *(number for pair in terms.values() for number in pair))
        clock.tick(spent)
        means = {name: sums[2 * i] / max(sums[2 * i + 1], 1) for i, name in enumerate(terms)}
        return {"loss": total / max(good, 1)} | means | {
            "gradient": float(norm), "rate": rate, "skipped": seen - good, "seconds": spent,
        }  # fmt: skip

    def _backward(self, inputs: list[Inputs], good: float) -> tuple[float, dict[str, list[float]]]:
        """Gradients of the global batch's mean; the sums of this process's losses and of their parts.

        Distributed training averages gradients over the processes, so each scales its part by their number.
        """
        total, terms = 0.0, {}
        processes = self.accelerator.num_processes
        for number, each in enumerate(inputs):
            more = number < len(inputs) - 1
            with self.accelerator.no_sync(self.model) if more else contextlib.nullcontext():
                losses = self.task.losses(self.model, each)
                self.accelerator.backward(losses.total * (processes / good))
            total += float(losses.total.detach())
            for name, pair in losses.parts.items():
                before = terms.get(name, (0.0, 0.0))
                terms[name] = [sum_ + float(value.detach()) for sum_, value in zip(before, pair, strict=True)]
        return total, terms

    def _sum(self, *numbers: float) -> list[float]:
        values = torch.tensor(numbers, dtype=torch.float64 if self.task.base.device.type != "mps" else torch.float32)
        return self.accelerator.reduce(values.to(self.task.base.device), "sum").tolist()

    # On disk

    @property
    def parts(self) -> dict[str, object]:
        """What a state holds."""
        return {
            "model": self.task.model, "optimizer": self.optimizer, "average": self.average, "clock": self.clock,
            "stages": self.stages, "skipped": self.skipped,
        }  # fmt: skip

    def save(self) -> Path:
        """State, export and the table of reasons; every process has to call. The exported file."""
        self.skipped.gather()
        folder, step, exported = self.config.folder, self.clock.step, Path()
        if self.accelerator.is_main_process:
            save_newest(folder, step, self.parts, self.terms(), self.config.keep)
            with self.average.used():
                exported = self.task.export(step)
            reasons = json.dumps(dict(self.skipped.reasons()), indent=1)
            write_whole(folder / "skipped.json", reasons.encode())
        self.accelerator.wait_for_everyone()
        return exported

    def _keep(self, exported: Path) -> None:
        """The file of a stage that is over, under a name of its own."""
        if self.accelerator.is_main_process:
            shutil.copyfile(exported, exported.with_stem(f"{exported.stem}_{self.stages.stage.name}"))

    def resume(self) -> bool:
        """Go on from the newest state of the run's folder, if there is one.

        ValueError if it is of a run with other terms.
        """
        known = states(self.config.folder)
        if known:
            load_state(known[-1], self.parts, self.terms(), "choose another --out")
        return bool(known)

    def terms(self) -> dict[str, object]:
        """What a run cannot change on its way, as plain values: what its order depends on, and its weights' shapes."""
        config = self.config
        own = {"seed": config.seed, "batch": config.batch, "ema": config.ema, "data": self.order}
        return own | dict(self.task.terms())
