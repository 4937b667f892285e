"""`run.py train spf-portrait` as people call it: several processes, and what a dry run tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from omniportrait import environment
from omniportrait.lab.world.shards import write_portraits
from omniportrait.lab.world.tailored import Tailored
from omniportrait.training.estimate import estimate
from omniportrait.training.spf_portrait.config import read
from omniportrait.training.spf_portrait.task import SpfTask
from omniportrait.training.trainer import Trainer
from training_world import Curve

COMMAND = [sys.executable, str(environment.ROOT / "run.py"), "train", "spf-portrait"]
SMALL = {
    "data.resolution": 64, "data.workers": 0, "data.cached": False, "batch": 4, "micro_batch": 2, "steps": 3, "fit": 2,
    "precision": "fp32", "warmup": 1, "rate": 2e-2, "align_rate": 1e-2, "ema": 0.5, "save_every": 1, "log_every": 1,
    "report_samples": 1, "report_steps": 1, "rank": 4, "alpha": 4.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def hats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hats")
    write_portraits(folder / "train-000000.tar", Tailored(("hat",), people=2, pictures=4, size=64))
    return folder


@pytest.fixture
def trainer(world, hats, base, tmp_path):
    places = {"checkpoint": str(world / "base.safetensors"), "out": str(tmp_path / "run"), "data.shards": [str(hats)]}
    yield Trainer(SpfTask(read("demo", SMALL | places), base), Accelerator(cpu=True), None)
    base.attach = None
    base.let_go()


def test_dry_run_tells_both_stages_and_writes_nothing(trainer, tmp_path):
    told = estimate(trainer)
    assert "a step (fit)" in told and "a step (align)" in told and "3 steps" in told
    assert not (tmp_path / "run" / "states").exists() and not (tmp_path / "run" / "lora.safetensors").exists()


@pytest.mark.slow
def test_two_processes_walk_the_curve_of_one(trainer, world, hats, tmp_path):
    curve = Curve()
    trainer.run(curve)
    variables = os.environ | {"COMFYUI_PATH": str(environment.find_comfyui()), "OMP_NUM_THREADS": "1"}
    words = ["--config", "demo", "--checkpoint", world / "base.safetensors", "--data", hats, "--out", tmp_path / "two"]
    words += ["--processes", "2", "--target", "wearing a hat"]
    words += [word for name, value in SMALL.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    command = [*COMMAND, *map(str, words)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    torch.testing.assert_close([line["loss"] for line in lines], curve.losses(), rtol=1e-3, atol=1e-5)
    assert "lora.safetensors after 3 steps: copy it to ComfyUI/models/loras" in done.stdout
    assert {"lora.safetensors", "lora_fit.safetensors", "config.yaml"} <= {x.name for x in (tmp_path / "two").iterdir()}
    assert (tmp_path / "two" / "sheets" / "000000003.jpg").is_file()
