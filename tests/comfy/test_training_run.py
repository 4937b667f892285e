"""Whole runs of the command's own path on rendered portraits: what must not depend on how a run is cut up."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from omniportrait import environment
from omniportrait.models.pivot import file as pivot_checkpoint
from omniportrait.training import loop
from omniportrait.training.data import index
from omniportrait.training.loop import Budget
from omniportrait.training.pivot.pretrained import make_encoder
from omniportrait.training.pivot.task import EXPORT, PivotTask
from omniportrait.training.trainer import Trainer, states
from safetensors import safe_open
from safetensors.torch import save_file
from training_world import SMALL, Curve, config_of, trained, weights

COMMAND = [sys.executable, str(environment.ROOT / "run.py"), "train", "pivot-encoder"]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def newest(folder: Path) -> dict:
    """The newest state of a run's folder."""
    return torch.load(states(folder)[-1], weights_only=True)


@pytest.fixture(scope="module")
def reference(world, base, tmp_path_factory):
    """An uninterrupted run of four steps."""
    out = tmp_path_factory.mktemp("reference")
    return (out, *trained(config_of(world, out), base))


def test_run_learns_and_leaves_what_the_loader_reads(reference, base):
    out, trainer, curve = reference
    encoder, header = pivot_checkpoint.load(out / EXPORT)
    assert header.step == 4 and header.config.text_dims == (base.text_width,)
    assert len(curve.steps) == 4 and all(0 < each["loss"] < 1e4 and each["gradient"] > 0 for each in curve.steps)
    fresh = trainer.task.model.__class__(trainer.task.model.config)
    assert not torch.equal(trainer.task.model.fusion.weight, fresh.fusion.weight)
    averaged = dict(zip((n for n, _ in trainer.task.model.named_parameters()), trainer.average.values, strict=True))
    torch.testing.assert_close(encoder.fusion.weight, averaged["fusion.weight"], rtol=1e-3, atol=1e-5)


def test_encoder_tells_how_it_was_made(reference):
    out, *_ = reference
    with safe_open(out / EXPORT, framework="pt") as file:
        told = json.loads(file.metadata()["made"])
    assert told == {"objective.eta": 1.0, "samples": 16, "checkpoint": "base.safetensors"}


def test_encoder_loads_in_its_node(reference, base):
    from omniportrait.models.pivot.handle import load_handle

    assert load_handle(str(reference[0] / EXPORT)).header.config.text_width == base.text_width


def test_resumed_run_gives_the_same_weights(reference, world, base, tmp_path):
    config = config_of(world, tmp_path)
    _, before = trained(config, base, stop_at=3)
    resumed, after = trained(config, base, resume=True)
    assert before.losses() + after.losses() == reference[2].losses()
    for ours, theirs in zip(weights(resumed), weights(reference[1]), strict=True):
        assert torch.equal(ours, theirs)


def test_resumed_run_with_a_worker_and_the_cache_gives_the_same_weights(world, base, tmp_path):
    more = {"data.workers": 1, "data.cache": str(tmp_path / "cache")}
    whole, _ = trained(config_of(world, tmp_path / "whole", **more), base, cached=True)
    config = config_of(world, tmp_path / "pieces", **more)
    trained(config, base, stop_at=3, cached=True)
    resumed, _ = trained(config, base, resume=True, cached=True)
    for ours, theirs in zip(weights(resumed), weights(whole), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch": 2}, "begun with batch 4, but is to go on with 2"),
        ({"seed": 7}, "begun with seed 0, but is to go on with 7"),
        ({"ema": 0.5}, "begun with ema 0.9"),
        ({"data.reference": "own"}, "begun with data.reference identity"),
        ({"data.resolution": 128}, "begun with data 9 samples"),
        ({"data.face_labels": [1]}, "begun with data.face_labels"),
        ({"trainable_layers": 1}, "begun with trainable_layers None"),
        ({"fusion": "mlp"}, "begun with encoder .*linear.*mlp"),
    ],
)
def test_run_does_not_go_on_with_other_terms(reference, world, base, change, said):
    with pytest.raises(ValueError, match=said):
        trained(config_of(world, reference[0], **change), base, resume=True)


def test_run_goes_on_with_what_may_change(reference, world, base, tmp_path):
    shutil.copytree(reference[0] / "states", tmp_path / "run" / "states")
    shutil.copytree(world / "people", tmp_path / "moved")
    free = {"rate": 1e-4, "steps": 5, "micro_batch": 1, "data.shards": [str(tmp_path / "moved")]}
    assert trained(config_of(world, tmp_path / "run", **free), base, resume=True)[0].clock.step == 5


def test_micro_batches_and_cache_change_nothing(reference, world, base, tmp_path):
    """The cache is in half precision."""
    _, curve = trained(config_of(world, tmp_path, micro_batch=4), base, cached=True)
    torch.testing.assert_close(curve.losses(), reference[2].losses(), rtol=2e-3, atol=0)
    elsewhere = config_of(world, tmp_path / "again", micro_batch=4, **{"data.cache": str(tmp_path / "cache")})
    _, second = trained(elsewhere, base, cached=True)
    assert second.losses() == curve.losses()
    assert len(list((tmp_path / "cache" / "states").glob("*.bin"))) == 1


@pytest.mark.slow
def test_two_processes_walk_the_curve_of_one(reference, world, tmp_path):
    """Also where the two are killed after three steps, of which only two are in a state, and go on."""
    variables = os.environ | {"COMFYUI_PATH": str(environment.find_comfyui()), "OMP_NUM_THREADS": "1"}
    settings_ = [f"{n}={json.dumps(v)}" for n, v in SMALL.items()]
    command = [*COMMAND, "--config", "demo", "--checkpoint", world / "base.safetensors"]
    command += ["--data", world / "people", "--out", tmp_path, "--processes", "2"]
    command += [word for setting in settings_ for word in ("--set", setting)]
    for more in (["--stop-at", "2"], ["--resume"]):
        words = list(map(str, [*command, *more]))
        done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        if not states(tmp_path)[1:]:
            with (tmp_path / "log.jsonl").open("a") as log:
                log.write('{"step": 3, "loss": 9.9}\n')
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    torch.testing.assert_close([line["loss"] for line in lines], reference[2].losses(), **CLOSE)
    # Adam divides by each gradient's own size, so in four steps rounding moves weights whose gradients vanish (the
    # tower's). The fusion's bias begins at 0 and has had real gradients from the first step.
    ours, theirs = newest(tmp_path)["model"]["fusion.bias"], reference[1].task.model.fusion.bias.detach()
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-3
    assert "Going on from step 2" in done.stdout and "pivot_encoder.safetensors after 4 steps" in done.stdout
    assert (tmp_path / "tensorboard").is_dir() and (tmp_path / "sheets" / "000000004.jpg").is_file()


def test_states_are_whole_and_only_the_last_are_kept(world, base, tmp_path, monkeypatch):
    trainer, _ = trained(config_of(world, tmp_path, save_every=1, keep=2), base)
    assert [path.name for path in states(tmp_path)] == ["000000003.pt", "000000004.pt"]

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.torch, "save", interrupted)
    trainer.clock.step = 5
    with pytest.raises(KeyboardInterrupt):
        trainer.save()
    assert newest(tmp_path)["clock"]["step"] == 4


def test_run_stops_by_the_clock_with_its_rate_run_down(world, base, tmp_path, monkeypatch):
    """Of 1.2 seconds, where every step takes half a second."""
    monkeypatch.setattr(Budget, "lap", lambda self: 0.5)
    trainer, curve = trained(config_of(world, tmp_path, steps=10_000), base, minutes=0.02)
    assert trainer.clock.step == 3 and trainer.clock.spent == pytest.approx(1.5)
    assert newest(tmp_path)["clock"]["spent"] == trainer.clock.spent
    fall = 0.5 + 0.5 * math.cos(math.pi * 1.0 / 1.2)  # after two of the three steps
    rates = [each["rate"] for each in curve.steps]
    assert rates[0] == pytest.approx(0.5e-3)  # half of the warm-up
    assert rates[-1] == pytest.approx(1e-3 * (0.02 + 0.98 * fall))


def test_only_the_last_layers_learn_where_asked(world, base, tmp_path):
    tower = make_encoder(config_of(world, tmp_path), base.text_width).tower.state_dict()
    save_file({f"visual.{name}": weight.contiguous() for name, weight in tower.items()}, tmp_path / "tower.safetensors")
    given = {"trainable_layers": 0, "ema": 0.0, "pretrained": str(tmp_path / "tower.safetensors")}
    trainer, _ = trained(config_of(world, tmp_path / "run", **given), base)
    fresh = make_encoder(trainer.config, base.text_width)
    same = {n: torch.equal(w, fresh.get_parameter(n)) for n, w in trainer.task.model.named_parameters()}
    assert all(equal == name.startswith("tower.") for name, equal in same.items())


# Bad data


def spoil(world: Path, out: Path, good: int, nameless: int = 0) -> None:
    """The samples of a shard with all pictures after the first `good` cut short, and the first captions without a
    noun."""
    out.mkdir()
    number = 0
    with tarfile.open(world / "train-000000.tar") as source, tarfile.open(out / "train-000000.tar", "w") as target:
        for member in source:
            content = source.extractfile(member).read()
            if member.name.endswith(".jpg"):
                number += 1  # each sample's first file
                content = content if number <= good else content[: len(content) // 2]
            if member.name.endswith(".json") and number <= nameless:
                content = json.dumps(json.loads(content) | {"caption": "a forest"}).encode()
            member.size = len(content)
            target.addfile(member, io.BytesIO(content))


def test_bad_pictures_are_left_out_of_the_batch_and_counted(world, base, tmp_path):
    spoil(world / "people", tmp_path / "bad", good=7)
    shards = {"data.shards": [str(tmp_path / "bad")], "data.reference": "own"}
    trainer, curve = trained(config_of(world, tmp_path / "run", batch=9, micro_batch=3, steps=2, **shards), base)
    assert trainer.skipped.reasons() == {index.BROKEN_PICTURE: 2}  # samples, though each was read in both epochs
    assert json.loads((tmp_path / "run" / "skipped.json").read_text()) == {index.BROKEN_PICTURE: 2}
    assert [each["skipped"] for each in curve.steps] == [2, 2]
    # The mean is over the good ones: a run that never knew the bad ones, sample by sample, has the same loss.
    expected = alone(trainer, base, skip=index.BROKEN_PICTURE)
    assert curve.losses()[0] == pytest.approx(expected, rel=1e-5)


def alone(trainer: Trainer, base, skip: str) -> float:
    """The mean loss of the first batch's good samples, each computed by itself with the encoder as it began."""
    from omniportrait.training.pivot.step import gather, losses

    fresh = make_encoder(trainer.config, base.text_width)
    values = []
    for slot in trainer.task.data.plan.batch(0).slots:
        sample = trainer.task.data.samples[slot]
        if sample.problem:
            assert sample.problem == skip
            continue
        with torch.no_grad():
            inputs = gather([sample], base)
            values.append(float(losses(fresh, inputs, base, trainer.config.objective, trainer.config.seed).total))
    return sum(values) / len(values)


def test_run_stops_when_over_half_is_bad(world, base, tmp_path):
    spoil(world / "people", tmp_path / "bad", good=3)
    shards = {"data.shards": [str(tmp_path / "bad")], "data.reference": "own"}
    with pytest.raises(SystemExit, match="67% of the samples were bad") as stopped:
        trained(config_of(world, tmp_path / "run", batch=3, micro_batch=3, steps=50, **shards), base)
    assert f"6  {index.BROKEN_PICTURE}" in str(stopped.value)


def test_index_and_reading_are_judged_together(world, base, tmp_path):
    """Four of nine have no noun, two more break when they are read: neither is over half by itself."""
    spoil(world / "people", tmp_path / "bad", good=7, nameless=4)
    shards = {"data.shards": [str(tmp_path / "bad")], "data.reference": "own"}
    with pytest.raises(SystemExit, match=r"67% .* \(4 of 9 by the index, and of the others 40%") as stopped:
        trained(config_of(world, tmp_path / "run", batch=5, micro_batch=5, steps=50, **shards), base)
    assert f"4  {index.NO_NOUN}" in str(stopped.value) and f"2  {index.BROKEN_PICTURE}" in str(stopped.value)


def test_shard_that_vanishes_stops_the_run_with_its_reason(world, base, tmp_path):
    shutil.copytree(world / "people", tmp_path / "world")
    config = config_of(world, tmp_path / "run", steps=50, **{"data.shards": [str(tmp_path / "world")]})
    trainer = Trainer(PivotTask(config, base), Accelerator(cpu=True), None)

    class Vanish(Curve):
        def step(self, step, numbers):
            super().step(step, numbers)
            if step == 2:
                (tmp_path / "world" / "train-000000.tar").unlink()

    curve = Vanish()
    with pytest.raises(SystemExit, match=index.BROKEN_SHARD):
        trainer.run(curve)
    assert all(torch.isfinite(w).all() for w in weights(trainer)) and len(curve.steps) >= 4


def test_wrong_family_is_one_sentence(world, base, tmp_path):
    config = config_of(world, tmp_path, family="sd15")
    with pytest.raises(ValueError, match="the config of its family"):
        Trainer(PivotTask(config, base), Accelerator(cpu=True), None)


# What a run shows


def test_sheets_curves_and_estimate(world, base, tmp_path):
    from omniportrait.training.estimate import estimate
    from omniportrait.training.report import Reporter
    from PIL import Image

    config = config_of(world, tmp_path, report_samples=2, report_steps=2)
    trainer = Trainer(PivotTask(config, base), Accelerator(cpu=True), None)
    before = [w.clone() for w in weights(trainer)]
    reporter = Reporter(trainer.task, trainer.average, 0)
    reporter.step(1, {"loss": 1.0, "localisation": 0.5, "skipped": 0.0})
    reporter.sheets(1)
    reporter.close()
    with Image.open(tmp_path / "sheets" / "000000001.jpg") as sheet:
        assert sheet.size == (5 * 64, 2 * 64)
    assert all(torch.equal(w, b) for w, b in zip(weights(trainer), before, strict=True))
    text = estimate(trainer)
    assert "4 = 1 process(es) x 4, 2 at a time" in text and "GiB at most" in text and "hours" in text


def test_command_refuses_to_mix_two_runs(reference, world):
    from omniportrait.training.command import train
    from omniportrait.training.commands.pivot_encoder import open_task

    options = argparse.Namespace(resume=False, dry_run=False, minutes=None, stop_at=None)
    with pytest.raises(ValueError, match="add --resume"):
        train(config_of(world, reference[0]), options, open_task)
