"""What a run holds in memory and what it lets go, as far as a CPU shows it."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from omniportrait.training.base import load_base
from omniportrait.training.command import join
from omniportrait.training.estimate import estimate
from omniportrait.training.pivot import task as pivot
from omniportrait.training.pivot.task import PivotTask
from omniportrait.training.report import Reporter
from omniportrait.training.trainer import Trainer
from training_world import config_of, trained, weights


@pytest.fixture
def base(world, tmp_path):
    return load_base(config_of(world, tmp_path / "out"))


def loaded(base) -> set[str]:
    """Which of the base's models ComfyUI holds on the device."""
    parts = {"unet": base.model, "text": base.clip.patcher, "vae": base.vae.patcher}
    there = [each.model for each in comfy.model_management.current_loaded_models]
    return {name for name, patcher in parts.items() if any(patcher is each for each in there)}


def trainer_of(config, base) -> Trainer:
    return Trainer(PivotTask(config, base), Accelerator(cpu=True), None)


def test_cached_run_keeps_the_unet_alone_on_the_device(world, base, tmp_path):
    config = config_of(world, tmp_path, **{"data.cached": True})
    trainer, _ = trained(config, base, stop_at=1, cached=True)
    assert loaded(base) == {"unet"}
    reporter = Reporter(trainer.task, trainer.average, 0)
    reporter.sheets(1)
    reporter.close()
    trainer.step(next(trainer.batches(1, 2)))
    assert loaded(base) == {"unet"}


def test_dry_run_of_a_cached_run_measures_what_the_run_will_hold(world, base, tmp_path):
    assert "the cache" in estimate(trainer_of(config_of(world, tmp_path, **{"data.cached": True}), base))
    assert loaded(base) == {"unet"}


def test_samples_of_a_step_are_read_one_micro_batch_at_a_time(world, base, tmp_path, monkeypatch):
    """A worker's tensors cost an open file each, as long as they live."""
    trainer, before, held = trainer_of(config_of(world, tmp_path, micro_batch=1), base), [], []

    def watched(samples, base):
        held.append(sum(sample() is not None for sample in before))
        before.extend(map(weakref.ref, samples))
        return gather(samples, base)

    gather = pivot.gather
    monkeypatch.setattr(pivot, "gather", watched)
    batches = trainer.batches(0, 2)
    for _ in range(2):
        trainer.step(next(batches))
    assert held == [0] * 8


@pytest.fixture
def distributed(monkeypatch):
    """The command's own accelerator in a process that torch's launcher started, as the only one."""

    def started(config) -> Accelerator:
        place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        for name, value in (place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}).items():
            monkeypatch.setenv(name, value)
        AcceleratorState._reset_state(reset_partial_state=True)
        return join(config)

    yield started
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


def test_gradients_of_several_processes_are_held_once(world, base, tmp_path, distributed, monkeypatch):
    """They lie in the buckets that are sent, from the second step on and also while micro-batches add up; the numbers
    are those of one process."""
    one, alone = trained(config_of(world, tmp_path / "one"), base)
    config = config_of(world, tmp_path / "many")
    accelerator = distributed(config)
    assert accelerator.distributed_type == "MULTI_CPU"
    monkeypatch.setattr(accelerator, "no_sync", lambda model: model.no_sync())  # which accelerate spares a single one
    places, losses = [], pivot.losses

    def watched(encoder, *rest):
        gradients = [weight.grad for weight in encoder.parameters() if weight.grad is not None]
        places.append((len(gradients), len({gradient.untyped_storage().data_ptr() for gradient in gradients})))
        return losses(encoder, *rest)

    monkeypatch.setattr(pivot, "losses", watched)
    many, curve = trained(config, base, accelerator=accelerator)
    count = len(list(many.task.model.parameters()))
    assert len(places) == 8 and places[2:] == [(count, 1)] * 6
    assert curve.losses() == alone.losses()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(weights(many), weights(one), strict=True))


def test_cache_takes_as_long_as_its_largest_share():
    """Shards are shared out whole, in turn."""
    from omniportrait.training.estimate import largest_share

    shards = [SimpleNamespace(shard=name) for name in "aaaaabbc"]
    assert [largest_share(shards, processes) for processes in (1, 2, 3, 8)] == [8, 6, 5, 5]
