"""Telling people apart: the tower's own lesson."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import torch
from omniportrait import environment
from omniportrait.models.pivot.encoder import PivotConfig, PivotEncoder
from omniportrait.training.data import samples as samples_module
from omniportrait.training.data.index import BROKEN_PICTURE, BadSample
from omniportrait.training.pivot import config as settings
from omniportrait.training.pivot import contrast as contrast_module
from omniportrait.training.pivot.contrast import TEMPERATURE, by_noun, contrast, teach
from PIL import Image
from safetensors.torch import load_file

DOOR = environment.ROOT / "run.py"
TOWER = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 8}


def people(path, count: int) -> None:
    """Three noisy pictures of each, in a colour of their own."""
    random = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(3 * count):
            colour = np.random.default_rng(number // 3).integers(30, 225, 3)
            pixels = np.clip(colour + random.normal(0, 10, (48, 48, 3)), 0, 255).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG", quality=95)
            described = {"caption": "a man", "subject": "man", "face_box": [12, 12, 36, 36], "identity": number // 3}
            mask = io.BytesIO()
            Image.fromarray(np.full((48, 48), 255, np.uint8)).save(mask, "PNG")
            parts = {"jpg": file.getvalue(), "json": json.dumps(described).encode(), "mask.png": mask.getvalue()}
            for extension, content in parts.items():
                member = tarfile.TarInfo(f"{number:03d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def test_contrast_is_the_cross_entropy_both_ways():
    generator = torch.Generator().manual_seed(0)
    ones, others = (torch.nn.functional.normalize(torch.randn(3, 5, generator=generator), dim=-1) for _ in range(2))
    scores = (ones.double() @ others.double().T / TEMPERATURE).exp()
    both_ways = [-(scores.diagonal() / scores.sum(axis)).log().mean() for axis in (0, 1)]
    value, accuracy = contrast(ones, others)
    assert float(value) == pytest.approx(float(sum(both_ways)) / 2, rel=1e-5)
    assert accuracy == pytest.approx(float((scores.argmax(1) == torch.arange(3)).double().mean()))


def test_batches_hold_people_of_one_noun():
    """Nouns without a batch of people of their own go to another's, so that nobody is left out."""
    nouns = ["man", "woman"] * 20 + ["girl"] * 3
    plan = by_noun(nouns, batch=8, seed=0)
    batches = [[slot.sample for slot in plan.batch(step).slots] for step in range(plan.per_epoch)]
    assert {person for batch in batches for person in batch} == set(range(43))
    kinds = [{nouns[person] for person in batch} for batch in batches]
    assert all(len(kind - {"girl"}) == 1 for kind in kinds) and {"woman"} in kinds
    assert all(len(set(batch)) == 8 for batch in batches)  # a person twice would be its own stranger


def test_tower_learns_and_an_encoder_starts_from_it(tmp_path):
    people(tmp_path / "train-000000.tar", 12)
    given = {"data.shards": [str(tmp_path)], "out": str(tmp_path), "tower": TOWER, "batch": 6, "steps": 60}
    given |= {"data.workers": 0, "precision": "fp32", "rate": 3e-3, "warmup": 5}
    config = settings.read("demo", given)
    said: list[str] = []
    assert teach(config, tmp_path / "tower.safetensors", 5.0, said.append) > 0.6  # by chance: 1 in 6
    assert len(said) == 3 and "step 60" in said[-1]
    encoder = PivotEncoder(PivotConfig("generic", (8,), config.tower))
    state = load_file(tmp_path / "tower.safetensors")
    encoder.load_pretrained_tower(state)
    assert torch.equal(encoder.tower.conv1.weight, state["visual.conv1.weight"])


def lesson(tmp_path, **changed) -> settings.Config:
    people(tmp_path / "train-000000.tar", 4)
    given = {"data.shards": [str(tmp_path)], "out": str(tmp_path), "tower": TOWER, "batch": 4, "steps": 25}
    given |= {"data.workers": 0, "precision": "fp32", "data.cache": str(tmp_path / "cache")}
    return settings.read("demo", given | changed)


def test_no_face_is_mirrored_whatever_the_config_says(tmp_path, monkeypatch):
    seen = []
    real = contrast_module.seen_of

    def look(entry, side, augmentation, random):
        seen.append(augmentation)
        return real(entry, side, augmentation, random)

    monkeypatch.setattr(contrast_module, "seen_of", look)
    config = lesson(tmp_path, steps=1, **{"augmentation.flip_chance": 1.0, "augmentation.zoom": 1.7})
    teach(config, tmp_path / "tower.safetensors", 1.0, print)
    assert {(each.flip_chance, each.zoom) for each in seen} == {(0.0, 1.7)}


def test_pictures_that_cannot_be_read_end_it_in_one_sentence(tmp_path, monkeypatch):
    def broken(*_):
        raise BadSample(BROKEN_PICTURE)

    monkeypatch.setattr(samples_module, "decode", broken)
    with pytest.raises(ValueError, match="No pictures could be read"):
        teach(lesson(tmp_path), tmp_path / "tower.safetensors", 1.0, print)
    assert not (tmp_path / "tower.safetensors").exists()


@pytest.mark.slow
def test_workers_that_are_spawned_find_the_package(tmp_path):
    """As on Windows and macOS, when the command is started through run.py, which hides this folder's files."""
    lesson(tmp_path)
    (tmp_path / "small.yaml").write_text(json.dumps({"tower": TOWER, "data": {"workers": 1}, "precision": "fp32"}))
    words = ["--config", str(tmp_path / "small.yaml"), "--data", str(tmp_path), "--people", "4", "--steps", "2"]
    words += ["--held-out", str(tmp_path)]
    (tmp_path / "sitecustomize.py").write_text("import multiprocessing\nmultiprocessing.set_start_method('spawn')\n")
    command = [sys.executable, str(DOOR), "train", "tower", *words, "--out", str(tmp_path / "tower.safetensors")]
    variables = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "among 4" in done.stdout and "8 pictures of 4 people" in done.stdout
    assert (tmp_path / "tower.safetensors").is_file()


def test_too_few_people_are_refused(tmp_path):
    people(tmp_path / "train-000000.tar", 3)
    config = settings.read("demo", {"data.shards": [str(tmp_path)], "out": str(tmp_path), "tower": TOWER, "batch": 4})
    with pytest.raises(ValueError, match="Only 3 people"):
        teach(config, tmp_path / "tower.safetensors", 1.0, print)
