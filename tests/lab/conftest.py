"""The laboratory runs on the real ComfyUI; its own tests do too."""

from __future__ import annotations

from pathlib import Path

import pytest
from omniportrait import environment

environment.use_comfyui()

import torch
from omniportrait.lab.testbed import checkpoints, small
from omniportrait.models.pivot import file as pivot_checkpoint
from omniportrait.models.pivot.encoder import PivotConfig, PivotEncoder, TowerConfig
from omniportrait.training.files import write_tensors


@pytest.fixture(scope="session")
def vae():
    return small.vae()


@pytest.fixture(scope="session")
def random_model(tmp_path_factory) -> Path:
    """A folder with base.safetensors and pivot.safetensors: random weights of the demo's shape and their encoder."""
    folder = tmp_path_factory.mktemp("weights")
    write_tensors(folder / "base.safetensors", checkpoints.demo())
    torch.manual_seed(0)
    tower = TowerConfig(image_size=32, patch_size=8, width=32, layers=1, head_width=16)
    pivot_checkpoint.save(folder / "pivot.safetensors", PivotEncoder(PivotConfig("generic", (128,), tower)), 0)
    return folder


@pytest.fixture(autouse=True)
def no_leftovers():
    """Every test starts with an empty reference cache."""
    from omniportrait.sampling import reference

    reference.forget_all()
    yield
    reference.forget_all()
