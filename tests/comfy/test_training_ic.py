"""`train ic-portrait` on rendered pairs: what pairs are, what the losses say, and what must not depend on how a run is
cut up."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from omniportrait import environment
from omniportrait.guidance.ic_portrait.flow import own_places
from omniportrait.lab.world.shards import Shard
from omniportrait.lab.world.shards import write as render
from omniportrait.models.ic import file as ic_file
from omniportrait.models.ic.handle import load_handle
from omniportrait.models.ic.nets import Shape
from omniportrait.training.data.plan import Slot
from omniportrait.training.ic_portrait import config as settings
from omniportrait.training.ic_portrait import pairs, sheets, step
from omniportrait.training.ic_portrait.task import EXPORT, ICTask, check_base
from omniportrait.training.trainer import Trainer
from training_world import Curve

SMALL = {
    "data.resolution": 64, "data.workers": 0, "batch": 4, "micro_batch": 2, "steps": 4, "precision": "fp32",
    "save_every": 100, "log_every": 1, "report_every": 1000, "report_samples": 1, "report_steps": 2, "warmup": 0,
    "matching.steps": 2, "rate": 1e-3, "matching.rate": 1e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """A folder with a shard of three people in three pictures each, which tells the places of the faces."""
    folder = tmp_path_factory.mktemp("people")
    return render(Shard(folder / "train-000000.tar", 0, 3, 2, 256, seed=0, places=True)).parent


def config_of(world, people, out, **changes) -> settings.Config:
    places = {"checkpoint": str(world / "base.safetensors"), "out": str(out), "data.shards": [str(people)]}
    config = settings.read("demo", SMALL | places | changes)
    config.check()
    return config


def trained(config, base, stop_at=None, resume=False):
    trainer, curve = Trainer(ICTask(config, base), Accelerator(cpu=True), None), Curve()
    assert trainer.resume() == resume
    trainer.run(curve, stop_at)
    return trainer, curve


@pytest.fixture(scope="module")
def reference(world, people, base, tmp_path_factory):
    """An uninterrupted run of two steps a stage."""
    out = tmp_path_factory.mktemp("reference")
    return out, *trained(config_of(world, people, out), base)


def rewritten(people, out, change):
    """The shard with each member's content changed, or left out where `change(name, content)` gives None."""
    out.mkdir()
    with tarfile.open(people / "train-000000.tar") as source, tarfile.open(out / "train-000000.tar", "w") as target:
        for member in source:
            content = change(member.name, source.extractfile(member).read())
            if content is not None:
                member.size = len(content)
                target.addfile(member, io.BytesIO(content))
    return out


def test_a_pair_is_one_person_twice_and_knows_the_way(world, people, tmp_path):
    data = pairs.open_data(config_of(world, people, tmp_path, **{"data.resolution": 256, "objective.light": 0.3}))
    away = []
    for number in range(9):
        pair = data.samples[Slot(number, 0, number)]
        assert not pair.problem and not torch.equal(pair.profile, pair.lit)
        assert 0 < float(pair.face.mean()) < 1 and pair.known.sum() > 50
        kept = (pair.masked != 0).any(0)
        assert torch.equal(pair.masked[:, kept], pair.lit[:, kept]) and float(kept.float().mean()) < 0.33
        for lit, profile in zip(*pair.landmarks[:, 2:], strict=True):  # eyes' centres lie inside of them
            column, row = (lit * 32).long().tolist()
            if pair.known[row, column]:
                offset = lit - own_places(32, 32)[row, column]
                away.append(float((pair.flow[row, column] + offset - profile).norm() * 32))
    assert len(away) > 10 and sorted(away)[len(away) // 2] < 1
    again = data.samples[Slot(3, 0, 3)]
    assert torch.equal(again.masked, data.samples[Slot(3, 0, 3)].masked)
    assert not torch.equal(again.masked, data.samples[Slot(3, 1, 3)].masked)


def test_both_stages_run_and_leave_what_the_loader_reads(reference, base):
    out, trainer, curve = reference
    assert len(curve.steps) == 4 and all(each["gradient"] > 0 for each in curve.steps)
    assert [("correspondence" in each, "right" in each) for each in curve.steps] == [(True, False)] * 2 + [
        (False, True)
    ] * 2
    handle = load_handle(str(out / EXPORT))
    assert handle.header.step == 4 and handle.header.light_most == 0.2
    assert handle.header.match_level == 5 and handle.header.matching_levels == 6 < len(handle.header.shape.widths)
    handle.check(base.net.model_config.unet_config)
    first, _ = ic_file.load(out / "ic_portrait_matching.safetensors")
    last, _ = ic_file.load(out / EXPORT)
    for name, value in first.state_dict().items():
        same = torch.equal(value, last.state_dict()[name])
        assert same or not name.startswith("matching."), name
    assert bool(last.appearance.zero[0].weight.any()) and not first.appearance.zero[0].weight.any()
    assert trainer.task.sheet().shape == (3, 64, 6 * 64)


@pytest.mark.parametrize("cut", [1, 3])
def test_a_resumed_run_gives_the_same_weights(reference, world, people, base, tmp_path, cut):
    config = config_of(world, people, tmp_path)
    _, before = trained(config, base, stop_at=cut)
    resumed, after = trained(config, base, resume=True)
    assert before.losses() + after.losses() == reference[2].losses()
    for ours, theirs in zip(resumed.task.model.parameters(), reference[1].task.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_gradient_is_the_losses_slope(world, people, base, tmp_path):
    """Through the frozen UNet's decoder, by a small step of the finest zero convolution."""
    config = config_of(world, people, tmp_path, **{"matching.objective": "both"})
    task = ICTask(config, base)
    inputs = task.gather([task.data.samples[slot] for slot in task.data.plan.batch(0).slots[:2]])
    for stage, weight in (
        ("appearance", task.model.nets.appearance.zero[0].weight),
        ("matching", task.model.zero[0].weight),
    ):
        way = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))

        def told(size: float, stage=stage, weight=weight, way=way) -> float:
            with torch.no_grad():
                weight.add_(size * way)
                result = step.losses(task.model, inputs, base, config, stage).total
                weight.sub_(size * way)
            return float(result)

        task.model.zero_grad()
        step.losses(task.model, inputs, base, config, stage).total.backward()
        slope = (told(1e-2) - told(-1e-2)) / 2e-2
        assert float((weight.grad * way).sum()) == pytest.approx(slope, rel=0.02) and slope != 0


def test_the_correspondence_is_learned(world, people, base, tmp_path):
    config = config_of(world, people, tmp_path, **{"steps": 17, "matching.steps": 16, "matching.rate": 4e-3})
    _, curve = trained(config, base, stop_at=16)
    told = [each["correspondence"] for each in curve.steps]
    assert sum(told[-5:]) < 0.8 * sum(told[:5])


def test_bad_pairs_say_why_and_count_for_nothing(world, people, base, tmp_path):
    def alone(name, content):
        return content if "_00." in name else None

    def without(what):
        def change(name, content):
            if what == "places":
                return None if name.endswith("npy") else content
            if what == "broken" and name.endswith("npy"):
                return content[:100]
            if what == "landmarks" and name.endswith("json"):
                return json.dumps(json.loads(content) | {"landmarks": [[1, 2]] * 4}).encode()
            return content

        return change

    cases = {
        pairs.ALONE: alone, pairs.NO_PLACES: without("places"), pairs.BROKEN_PLACES: without("broken"),
        pairs.NO_LANDMARKS: without("landmarks"),
    }  # fmt: skip
    task = ICTask(config_of(world, people, tmp_path / "run"), base)
    for number, (reason, change) in enumerate(cases.items()):
        config = config_of(world, rewritten(people, tmp_path / str(number), change), tmp_path / "run")
        found = pairs.open_data(config).samples[Slot(0, 0, 0)]
        assert found.problem == reason and found.weight == 0
    both = [task.data.samples[Slot(0, 0, 0)], replace(found, slot=Slot(1, 0, 1))]
    inputs, good = task.gather(both), task.gather(both[:1])
    assert inputs.problems == {1: pairs.NO_LANDMARKS} and inputs.weights.tolist() == [1, 0]
    for stage in ("matching", "appearance"):
        one, two = (step.losses(task.model, each, base, task.config, stage).total for each in (inputs, good))
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_settings_that_would_only_fail_later_are_refused(world, people, tmp_path):
    for change, said in (
        ({"matching.steps": 4}, "matching.steps is 4"),
        ({"matching.steps": 0, "objective.flow": "shared"}, "objective.flow is shared"),
        ({"crop": [2.0, 1.0]}, "crop is"),
        ({"data.bucket_step": 64}, "data.bucket_step must be 0"),
        ({"data.cached": True}, "data.cached must be false"),
        ({"objective.flow": "guess"}, "must be one of landmarks, shared, none"),
    ):
        with pytest.raises(ValueError, match=said):
            config_of(world, people, tmp_path, **change)


@pytest.mark.slow
def test_sheets_are_painted_in_the_models_own_precision(reference, base):
    """The nets learn in float32; what they are given there is what the model computes in."""
    task = reference[1].task
    handle = sheets.handle_of(task.model, task.header(4), base)
    condition, rows = torch.zeros(1, 4, 8, 16, dtype=torch.bfloat16), base.empty_text().rows[None].bfloat16()
    for net in (handle.appearance.model, handle.matching.model):
        features = net(condition, torch.ones(1), rows, {})
        assert all(each.dtype == torch.bfloat16 and each.isfinite().all() for each in features)
    own = task.model.nets.appearance.input_blocks[0][0].weight
    assert handle.appearance.model.input_blocks[0][0].weight.data_ptr() == own.data_ptr()


def test_a_base_or_a_level_that_the_nets_cannot_follow_is_refused(world, people, tmp_path):
    config, shape = config_of(world, people, tmp_path), Shape(64, (1, 2, 4), (2, 2, 2), (0,) * 6, 0, 128, num_heads=4)
    check_base({}, shape, replace(config, matching=replace(config.matching, level=5)))
    for unet, level, side, told in (
        ({"adm_in_channels": 2816}, 5, 64, "of another family"), ({}, 9, 64, None), ({}, 10, 64, "levels are 0 to 9"),
        ({}, 2, 512, "64 cells a side"), ({}, 3, 512, None),
    ):  # fmt: skip
        given = replace(
            config, matching=replace(config.matching, level=level), data=replace(config.data, resolution=side)
        )
        if told is None:
            check_base(unet, shape, given)
            continue
        with pytest.raises(ValueError, match=told):
            check_base(unet, shape, given)


def test_two_processes_walk_the_curve_of_one(reference, world, people, tmp_path):
    """Over the border between the stages, and interrupted there."""
    variables = os.environ | {"COMFYUI_PATH": str(environment.find_comfyui()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, environment.ROOT / "run.py", "train", "ic-portrait", "--config", "demo"]
    command += ["--checkpoint", world / "base.safetensors", "--data", people, "--out", tmp_path, "--processes", "2"]
    command += [word for name, value in SMALL.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    for more in (["--stop-at", "3"], ["--resume"]):
        words = list(map(str, [*command, *more]))
        done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    losses = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    torch.testing.assert_close(losses, reference[2].losses(), rtol=1e-3, atol=1e-4)
