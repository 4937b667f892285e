"""`--dry-run`: a few real steps, and from them memory and hours of the whole run."""

from __future__ import annotations

import statistics
import sys

import torch

from .trainer import Trainer

STEPS = 5
"""The first is left out: it warms up."""


def estimate(trainer: Trainer) -> str:
    """Run a few steps of the run and say what it will take; nothing is written but the cache."""
    config, device = trainer.config, trainer.base.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    batches = trainer.batches(0, STEPS)
    trainer.clock.start()
    for _ in range(STEPS):
        seconds.append(trainer.step(next(batches))["seconds"])
        trainer.clock.start()
    each = statistics.median(seconds[1:])
    samples = len(trainer.data.samples.entries)
    learning = sum(w.numel() for w in trainer.encoder.parameters() if w.requires_grad)
    moments = 12 if trainer.average.values else 8  # bytes: AdamW keeps two numbers a weight, the average one
    total = sum(w.numel() for w in trainer.encoder.parameters())
    rows = [
        ("samples", f"{samples}, {trainer.data.problems.total()} left out by the index"),
        ("aspect buckets", f"{len(trainer.data.plan.members)}"),
        ("encoder", f"{total / 1e6:.1f} M parameters, {learning / 1e6:.1f} M of them learn"),
        ("batch", f"{config.batch} = {trainer.accelerator.num_processes} process(es) x "
                  f"{config.batch // trainer.accelerator.num_processes}, {trainer.micro} at a time"),
        ("memory", f"{_memory(device):.1f} GiB at most in one process on {device.type}"),
        ("a step", f"{each:.2f} s, {config.batch / each:.1f} samples a second"),
        ("the run", f"{config.steps} steps: {each * config.steps / 3600:.1f} hours, "
                    f"{config.steps * config.batch / samples:.1f} epochs"),
        ("a state on disk", f"{(4 * total + moments * learning) / 2**30:.2f} GiB; {config.keep} are kept"),
    ]  # fmt: skip
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def _memory(device: torch.device) -> float:
    """Highest use so far, GiB: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
