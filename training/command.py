"""What every `python run.py train TASK` does: the command line, one process or several, the run."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from .. import environment
from . import settings
from .settings import Run

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .base import Base
    from .task import Task
    from .trainer import Trainer

log = logging.getLogger(__name__)

WAIT = timedelta(days=1)
"""For each other: one process downloads and indexes all shards, and shares of the cache are not equally long."""


@dataclass(frozen=True)
class Command:
    """name: of the command. read: its config, from a recipe and overrides. open: the task of a config and a base model,
    once ComfyUI is there. more: settings that have an option of their own, with its help. door: `run.py`'s word before
    the name."""

    name: str
    description: str
    examples: str
    read: Callable[[str, Mapping[str, object]], Run]
    open: Callable[[Run, Base], Task]
    more: Mapping[str, str] = field(default_factory=dict)
    door: str = "train"

    def main(self, words: list[str]) -> int:
        options = self.arguments().parse_args(words)
        try:
            config = self.config(options)
            if options.processes > 1 and "LOCAL_RANK" not in os.environ:  # which the launcher sets in its children
                return launch([self.door, self.name], options, words)
            train(config, options, self.open)
        except ValueError as error:
            raise SystemExit(str(error)) from error
        return 0

    def config(self, options: argparse.Namespace) -> Run:
        overrides = dict(map(settings.parse_override, options.set))
        given = {"checkpoint": options.checkpoint, "out": options.out, "data.shards": options.data}
        for name, value in (given | {name: getattr(options, name) for name in self.more}).items():
            if value is not None:
                overrides[name] = value
        config = self.read(options.config, overrides)
        config.check()
        return config

    def arguments(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            prog=f"run.py {self.door} {self.name}", description=self.description, epilog=self.examples,
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        parser.add_argument("--config", required=True, metavar="FILE", help="a YAML file, or sd15, sdxl or demo")
        parser.add_argument("--checkpoint", metavar="FILE", help="the base model, which stays as it is")
        parser.add_argument("--data", nargs="+", metavar="SHARDS", help="folders, files, patterns or URLs of shards")
        parser.add_argument("--out", metavar="FOLDER", help="the run's folder: states, curves, sheets, the result")
        for name, meaning in self.more.items():
            parser.add_argument(f"--{name}", help=meaning)
        parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, as rate=1e-5")
        parser.add_argument("--resume", action="store_true", help="go on from the newest state in the run's folder")
        parser.add_argument("--minutes", type=float, help="end after so much training time; the rate falls towards it")
        parser.add_argument("--dry-run", action="store_true", help="only a few steps: what will the run take?")
        parser.add_argument("--processes", type=int, default=1, metavar="N", help="on this machine, one a GPU (1)")
        parser.add_argument("--stop-at", type=int, metavar="STEP", help="end this piece at a step; --resume carries on")
        return parser


def launch(name: Sequence[str], options: argparse.Namespace, words: list[str]) -> int:
    """Start the processes of this machine by torch's own launcher; accelerate finds itself in its variables."""
    own = {at for at, word in enumerate(words) if word.split("=")[0] == "--processes"}
    own |= {at + 1 for at in own if words[at] == "--processes"}
    rest = [word for at, word in enumerate(words) if at not in own]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={options.processes}"]
    door = [str(environment.ROOT / "run.py"), *name, "--here"]
    return subprocess.call([*torchrun, *door, *rest], env=os.environ | {"OMP_NUM_THREADS": _threads(options)})


def _threads(options: argparse.Namespace) -> str:
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // options.processes))


def join(config: Run) -> Accelerator:
    """This process's part in a run, on the device that it has been given."""
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    from .loop import fast_in_bf16

    on_cpu = bool(environment.device_arguments())
    mixed = "bf16" if config.precision == "bf16" and fast_in_bf16(torch.device("cpu" if on_cpu else "cuda")) else "no"
    patient = InitProcessGroupKwargs(timeout=WAIT)
    lean = DistributedDataParallelKwargs(
        gradient_as_bucket_view=True,  # or gradients are held twice
        find_unused_parameters=len(config.stages) > 1,  # each stage may teach a part of the weights alone
    )
    return Accelerator(mixed_precision=mixed, cpu=on_cpu, kwargs_handlers=[patient, lean])


def train(config: Run, options: argparse.Namespace, open_task: Callable[[Run, Base], Task]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    accelerator = join(config)  # before ComfyUI, which computes on this process's device
    environment.use_comfyui()
    from .base import load_base
    from .data.dataset import read_index, with_cache
    from .estimate import estimate
    from .trainer import Trainer, states

    if states(config.folder) and not (options.resume or options.dry_run):
        raise ValueError(f"{config.folder} holds a run already: add --resume to go on, or choose another --out.")
    if accelerator.is_local_main_process:
        read_index(config)  # before the others: it downloads and writes the index
    accelerator.wait_for_everyone()
    task = open_task(config, load_base(config))
    trainer = Trainer(task, accelerator, options.minutes)
    resumed = options.resume and not options.dry_run and trainer.resume()
    if accelerator.is_main_process:
        if resumed:
            print(f"Going on from step {trainer.clock.step}.")
        elif warning := task.warning():
            log.warning(warning)
    if options.dry_run:
        report = estimate(trainer)
        if accelerator.is_main_process:
            print(report)
        return
    if accelerator.is_main_process:
        config.folder.mkdir(parents=True, exist_ok=True)
        settings.write(config, config.folder / "config.yaml")
    if config.data.cached:
        task.data = with_cache(task.data, config, task.base, accelerator)
    work(trainer, options.stop_at)


def work(trainer: Trainer, stop_at: int | None) -> None:
    """The run itself, with all that it shows."""
    from .data.dataset import skip_table
    from .report import Reporter

    accelerator, reporter = trainer.accelerator, None
    if accelerator.is_main_process:
        reporter = Reporter(trainer.task, trainer.average, trainer.clock.step)
    try:
        path = trainer.run(reporter, stop_at)
        if reporter is not None:
            reporter.sheets(trainer.clock.step)
    finally:
        if reporter is not None:
            reporter.close()
    if accelerator.is_main_process:
        print(skip_table(trainer.skipped.reasons()))  # of all processes, since the last state
        print(f"{path} after {trainer.clock.step} steps: copy it to ComfyUI/models/{trainer.task.models}.")
    accelerator.end_training()
