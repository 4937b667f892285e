"""`--dry-run`: a few real steps, and from them memory and hours of the whole run."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from .data.dataset import with_part
from .data.index import Entry
from .trainer import Trainer

STEPS = 5
"""The first is left out: it warms up."""


def estimate(trainer: Trainer) -> str:
    """Run a few steps of the run and say what it will take. Nothing is written to the run's folder; of the cache only
    what these steps need is made, and thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        rows = _measured(trainer, Path(folder))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def _measured(trainer: Trainer, scratch: Path) -> list[tuple[str, str]]:
    config, task, device = trainer.config, trainer.task, trainer.task.base.device
    cache = _try_cache(trainer, scratch) if config.data.cached else []
    if device.type == "cuda":  # not before: ComfyUI's VAE takes as many pictures at once as there is room for
        torch.cuda.reset_peak_memory_stats(device)
    task.begin(0)
    seconds = [_step(trainer)]
    for _ in trainer.stages.stages[1:]:
        trainer.next_stage()
        seconds.append(_step(trainer))
    run = sum(each * stage.steps for each, stage in zip(seconds, trainer.stages.stages, strict=True))
    samples = len(task.data.samples.entries)
    learning = sum(w.numel() for w in task.model.parameters() if w.requires_grad)
    moments = 12 if trainer.average.values else 8  # bytes: AdamW keeps two numbers a weight, the average one
    total = sum(w.numel() for w in task.model.parameters())
    return [
        ("samples", f"{samples}, {task.data.problems.total()} left out by the index"),
        *cache,
        ("aspect buckets", f"{len(task.data.plan.members)}"),
        ("model", f"{total / 1e6:.1f} M parameters, {learning / 1e6:.1f} M of them learn"),
        ("batch", f"{config.batch} = {trainer.accelerator.num_processes} process(es) x "
                  f"{config.batch // trainer.accelerator.num_processes}, {trainer.micro} at a time"),
        ("memory", _memory(device)),
        *((f"a step {stage.name and f'({stage.name})'}".strip(),
           f"{each:.2f} s, {config.batch / each:.1f} samples a second")
          for each, stage in zip(seconds, trainer.stages.stages, strict=True)),
        ("the run", f"{config.steps} steps: {run / 3600:.1f} hours, "
                    f"{config.steps * config.batch / samples:.1f} epochs"),
        ("a state on disk", f"{(4 * total + moments * learning) / 2**30:.2f} GiB; {config.keep} are kept"),
    ]  # fmt: skip


def _step(trainer: Trainer) -> float:
    """Seconds of a step, from the run's first ones."""
    seconds, batches = [], trainer.batches(0, STEPS)
    trainer.clock.start()
    for _ in range(STEPS):
        seconds.append(trainer.step(next(batches))["seconds"])
        trainer.clock.skip()
    return statistics.median(seconds[1:])


def _try_cache(trainer: Trainer, scratch: Path) -> list[tuple[str, str]]:
    """Give the trainer a cache of the first steps' samples; what the whole one will take."""
    task, accelerator, samples = trainer.task, trainer.accelerator, trainer.task.data.samples
    process, processes = accelerator.process_index, accelerator.num_processes
    steps = [task.data.plan.batch(step).share(process, processes) for step in range(STEPS)]
    numbers = sorted({slot.sample for slots in steps for slot in slots})
    start = time.monotonic()
    task.data = with_part(task.data, trainer.config, task.base, scratch, numbers)
    each = (time.monotonic() - start) / len(numbers)
    size = sum(file.stat().st_size for file in scratch.rglob("*.bin")) / len(numbers)
    hours = largest_share(samples.entries, processes) * each / 3600
    return [("the cache", f"{hours:.2f} hours once, {len(samples.entries) * size / 2**30:.2f} GiB in "
                          f"{trainer.config.cache}")]  # fmt: skip


def largest_share(entries: Sequence[Entry], processes: int) -> int:
    """Samples of the process that caches most: the shards are shared out whole, in turn."""
    sizes = list(Counter(entry.shard for entry in entries).values())
    return max(sum(sizes[process::processes]) for process in range(processes))


def _memory(device: torch.device) -> str:
    """Highest use so far: of the GPU, or of the process."""
    more = ""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_reserved(device)
        used = torch.cuda.max_memory_allocated(device) / 2**30
        more = f" ({used:.1f} in use, the rest torch's reserve), and about 0.5 of CUDA's own"
    else:
        peak = _process_peak()
    return f"{peak / 2**30:.1f} GiB at most in one process on {device.type}{more}"


def _process_peak() -> int:
    """Bytes."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
