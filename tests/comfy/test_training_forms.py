"""Forms of a run that must not change what it learns: half precision, recomputed blocks, pictures of several shapes;
and the error of the predicted picture, which does."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from omniportrait.training.base import Base
from omniportrait.training.data.plan import Slot
from omniportrait.training.pivot.config import Objective
from omniportrait.training.pivot.pretrained import make_encoder
from omniportrait.training.pivot.step import conditioned, draw, gather, losses
from omniportrait.training.pivot.task import PivotTask, open_data
from omniportrait.training.trainer import Trainer
from PIL import Image
from training_world import Curve, config_of, trained


@pytest.fixture
def half():
    """An accelerator for bf16; there can be but one kind at a time."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


def form_of(base: Base, config) -> Base:
    return Base(base.model, base.clip, base.vae, config)


def test_bf16_with_recomputed_blocks_learns(world, base, half, tmp_path):
    config = config_of(world, tmp_path, precision="bf16", checkpointing=True, steps=3)
    trainer, curve = trained(config, form_of(base, config), accelerator=half)
    fresh = make_encoder(config, base.text_width)
    still = [name for name, w in trainer.task.model.named_parameters() if torch.equal(w, fresh.get_parameter(name))]
    assert not still
    assert all(w.dtype == torch.float32 and torch.isfinite(w).all() for w in trainer.task.model.parameters())
    AcceleratorState._reset_state(reset_partial_state=True)
    _, whole = trained(config_of(world, tmp_path / "fp32", steps=3), base)
    assert curve.losses() != whole.losses()  # or it was no bf16
    torch.testing.assert_close(curve.losses(), whole.losses(), rtol=0.03, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_blocks_give_the_same_gradient(world, base, tmp_path, precision):
    config = config_of(world, tmp_path, precision=precision)
    samples = open_data(config).samples
    results = []
    for checkpointing in (False, True):
        form = form_of(base, replace(config, checkpointing=checkpointing))
        encoder = make_encoder(config, base.text_width)
        torch.manual_seed(0)
        with torch.no_grad():  # a new fusion does not look at the face
            encoder.fusion.weight.add_(0.02 * torch.randn_like(encoder.fusion.weight))
        inputs = gather([samples[Slot(number, 0, number)] for number in range(3)], form)
        losses(encoder, inputs, form, config.objective, config.seed).total.backward()
        results.append(torch.cat([w.grad.flatten() for w in encoder.parameters() if w.requires_grad]))
    kept, recomputed = results
    assert kept.norm() > 0 and float((recomputed - kept).norm() / kept.norm()) < (1e-5 if precision == "fp32" else 1e-3)


def two_shapes(people: Path, out: Path) -> None:
    """The first four samples as they are, the next four beside their own mirror image, twice as wide."""
    out.mkdir()
    keys: list[str] = []
    with tarfile.open(people / "train-000000.tar") as source, tarfile.open(out / "train-000000.tar", "w") as target:
        for member in source:
            key, _, kind = member.name.partition(".")
            keys += [key] * (key not in keys)
            content = source.extractfile(member).read()
            if 4 <= keys.index(key) < 8 and kind != "json":
                content = widened(content, kind)
            if keys.index(key) < 8:
                member.size = len(content)
                target.addfile(member, io.BytesIO(content))


def widened(content: bytes, kind: str) -> bytes:
    picture, file = Image.open(io.BytesIO(content)), io.BytesIO()
    wide = Image.new(picture.mode, (2 * picture.width, picture.height))
    wide.paste(picture, (0, 0))
    if kind == "jpg":
        wide.paste(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (picture.width, 0))
    wide.save(file, "JPEG" if kind == "jpg" else "PNG", **({"quality": 95} if kind == "jpg" else {}))
    return file.getvalue()


def test_pictures_of_two_shapes_train_together(world, base, tmp_path):
    """At a rate of 0 each step's loss is the mean of its samples', each of which is computed by itself."""
    two_shapes(world / "people", tmp_path / "shapes")
    given = {"data.shards": [str(tmp_path / "shapes")], "data.resolution": 128, "data.bucket_step": 64}
    given |= {"data.max_aspect": 4.0, "data.reference": "own", "batch": 2, "rate": 0.0}
    config = config_of(world, tmp_path / "run", **given)
    data = open_data(config)
    trainer = Trainer(PivotTask(config, base, data), Accelerator(cpu=True), None)
    batches = [data.plan.batch(step) for step in range(4)]
    assert sorted(batch.size for batch in batches) == [(128, 128)] * 2 + [(192, 64)] * 2
    curve = Curve()
    trainer.run(curve)
    encoder = make_encoder(config, base.text_width)
    for batch, step in zip(batches, curve.steps, strict=True):
        alone = []
        for slot in batch.slots:
            inputs = gather([data.samples[slot]], base)
            assert inputs.latents.shape[-2:] == (batch.size[1] // 8, batch.size[0] // 8)
            with torch.no_grad():
                alone.append(float(losses(encoder, inputs, base, config.objective, config.seed).total))
        assert step["loss"] == pytest.approx(sum(alone) / 2, rel=1e-4) and step["gradient"] > 0
    log = json.loads((tmp_path / "run" / "skipped.json").read_text())
    assert log == {}


def test_error_of_the_picture_in_place_of_the_noise(world, base, tmp_path):
    """Against the predicted picture itself; where sigma^2 is above the limit, against the noise's error times that."""
    config = config_of(world, tmp_path / "run")
    data = open_data(config)
    inputs = gather([data.samples[slot] for slot in data.plan.batch(0).slots], base)
    encoder = make_encoder(config, base.text_width)
    plain = Objective(eta=0.0, drop_both=0.0, drop_id=0.0)
    chance = draw(inputs, base.timesteps, plain, seed=3)
    sigma = base.sigma(chance.timesteps).view(-1, 1, 1, 1)
    with torch.no_grad():
        rows, pooled = conditioned(encoder, inputs, chance, base)
        found = base.predict(inputs.latents, chance.noise, chance.timesteps, rows, pooled, inputs.columns).noise
        noisy = inputs.latents + sigma * chance.noise
        picture = (noisy - sigma * found - inputs.latents).square().mean((1, 2, 3))
        noise = (found - chance.noise).square().mean((1, 2, 3))
        limit = float(sigma.median() ** 2)
        for most, expected in ((1e9, picture), (limit, torch.minimum(picture, limit * noise))):
            told = losses(encoder, inputs, base, replace(plain, picture_error=most), seed=3)
            torch.testing.assert_close(told.parts["denoising"][0], expected.sum(), rtol=1e-3, atol=0)
