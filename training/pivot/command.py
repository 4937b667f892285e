"""`python run.py train pivot-encoder`: the command line, one process or several."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ... import environment
from . import config as settings
from .config import Config

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .trainer import Trainer

log = logging.getLogger(__name__)

WAIT = timedelta(days=1)
"""For each other: one process downloads and indexes all shards, and shares of the cache are not equally long."""
RANDOM_TOWER = (
    "WARNING: the image tower's %.0f million weights begin at random, which no recipe of ours is for: stop, and pass "
    "--set pretrained=open_clip_pytorch_model.bin with the file of OpenCLIP's ViT-L/14."
)
EPILOG = """examples:
  python run.py train pivot-encoder --config sd15 --checkpoint realisticVision.safetensors --data shards --out runs/me
  python run.py train pivot-encoder --config sdxl … --dry-run        memory and hours from a few real steps
  python run.py train pivot-encoder --config runs/me/config.yaml --resume
"""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py train pivot-encoder", description="Train a Pivot ID Encoder for a checkpoint.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--config", required=True, metavar="FILE", help="a YAML file, or sd15, sdxl or demo")
    parser.add_argument("--checkpoint", metavar="FILE", help="the base model, which stays as it is")
    parser.add_argument("--data", nargs="+", metavar="SHARDS", help="folders, files, patterns or URLs of shards")
    parser.add_argument("--out", metavar="FOLDER", help="the run's folder: states, curves, sheets, the encoder")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting, as rate=1e-5")
    parser.add_argument("--resume", action="store_true", help="go on from the newest state in the run's folder")
    parser.add_argument("--minutes", type=float, help="end after so much training time; the rate falls towards it")
    parser.add_argument("--dry-run", action="store_true", help="only a few steps: what will the run take?")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="on this machine, one a GPU (default: 1)")
    parser.add_argument("--stop-at", type=int, metavar="STEP", help="end this piece at a step; --resume carries on")
    return parser


def read_config(options: argparse.Namespace) -> Config:
    overrides = dict(map(settings.parse_override, options.set))
    for name, value in (("checkpoint", options.checkpoint), ("out", options.out), ("data.shards", options.data)):
        if value is not None:
            overrides[name] = value
    config = settings.read(options.config, overrides)
    config.check()
    return config


def launch(options: argparse.Namespace, words: list[str]) -> int:
    """Start the processes of this machine by torch's own launcher; accelerate finds itself in its variables."""
    own = {at for at, word in enumerate(words) if word.split("=")[0] == "--processes"}
    own |= {at + 1 for at in own if words[at] == "--processes"}
    rest = [word for at, word in enumerate(words) if at not in own]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={options.processes}"]
    door = [str(environment.ROOT / "run.py"), "train", "pivot-encoder"]
    return subprocess.call([*torchrun, *door, *rest], env=os.environ | {"OMP_NUM_THREADS": _threads(options)})


def _threads(options: argparse.Namespace) -> str:
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // options.processes))


def main(words: list[str]) -> int:
    options = arguments().parse_args(words)
    try:
        config = read_config(options)
        if options.processes > 1 and "LOCAL_RANK" not in os.environ:  # which the launcher sets in its children
            return launch(options, words)
        train(config, options)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    return 0


def join(config: Config) -> Accelerator:
    """This process's part in a run, on the device that it has been given."""
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    mixed = "bf16" if config.precision == "bf16" else "no"
    patient = InitProcessGroupKwargs(timeout=WAIT)
    lean = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # or gradients are held twice
    return Accelerator(mixed_precision=mixed, cpu=bool(environment.device_arguments()), kwargs_handlers=[patient, lean])


def train(config: Config, options: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    accelerator = join(config)  # before ComfyUI, which computes on this process's device
    environment.use_comfyui()
    from ..data.dataset import open_dataset, read_index, with_cache
    from .base import load_base
    from .estimate import estimate
    from .state import states
    from .trainer import Trainer

    folder = Path(config.out).expanduser()
    if states(folder) and not (options.resume or options.dry_run):
        raise ValueError(f"{folder} holds a run already: add --resume to go on with it, or choose another --out.")
    if accelerator.is_local_main_process:
        read_index(config)  # before the others: it downloads and writes the index
    accelerator.wait_for_everyone()
    base = load_base(config)
    trainer = Trainer(config, accelerator, base, open_dataset(config), options.minutes)
    resumed = options.resume and not options.dry_run and trainer.resume()
    if accelerator.is_main_process:
        if resumed:
            print(f"Going on from step {trainer.clock.step}.")
        elif config.pretrained_tag and not config.pretrained:
            log.warning(RANDOM_TOWER, sum(w.numel() for w in trainer.encoder.tower.parameters()) / 1e6)
    if options.dry_run:
        report = estimate(trainer)
        if accelerator.is_main_process:
            print(report)
        return
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        settings.write(config, folder / "config.yaml")
    if config.data.cached:
        trainer.data = with_cache(trainer.data, config, base, accelerator)
    work(trainer, options.stop_at)


def work(trainer: Trainer, stop_at: int | None) -> None:
    """The run itself, with all that it shows."""
    from ..data.dataset import skip_table
    from .report import Reporter

    accelerator, reporter = trainer.accelerator, None
    if accelerator.is_main_process:
        reporter = Reporter(
            trainer.config, trainer.base, trainer.encoder, trainer.average, trainer.data.samples, trainer.clock.step
        )
    try:
        path = trainer.run(reporter, stop_at)
        if reporter is not None:
            reporter.sheets(trainer.clock.step)
    finally:
        if reporter is not None:
            reporter.close()
    reasons = trainer.reasons()
    if accelerator.is_main_process:
        print(skip_table(reasons))
        print(f"{path} after {trainer.clock.step} steps: copy it to ComfyUI/models/pivot_encoders.")
    accelerator.end_training()
