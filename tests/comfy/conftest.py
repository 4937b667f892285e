"""Fixtures on the real ComfyUI: small models of the true shapes, loaded under inference mode as nodes load them."""

from __future__ import annotations

import pytest
import torch
from omniportrait import environment

environment.use_comfyui()

from omniportrait.lab.testbed import small


@pytest.fixture(scope="session", autouse=True)
def previews(tmp_path_factory):
    """Pictures that nodes show inside themselves go where pytest cleans up."""
    import folder_paths

    folder_paths.set_temp_directory(str(tmp_path_factory.mktemp("temp")))


@pytest.fixture
def sd15():
    return small.sd15()


@pytest.fixture
def sdxl():
    return small.sdxl()


@pytest.fixture(params=["sd15", "sdxl"])
def family(request):
    """(model patcher, conditioning width) of either family."""
    return getattr(small, request.param)()


@pytest.fixture(scope="session")
def vae():
    return small.vae()


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The folder that small trainings learn from."""
    from training_world import make_world

    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def base(world, tmp_path_factory):
    """Its base model, frozen, for all trainings."""
    from omniportrait.training.base import load_base
    from training_world import config_of

    return load_base(config_of(world, tmp_path_factory.mktemp("out")))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty models/pivot_encoders, registered as the pack registers it."""
    import folder_paths
    from omniportrait.nodes import register_model_folders

    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    folder_paths.folder_names_and_paths.pop("pivot_encoders", None)
    register_model_folders()
    (tmp_path / "pivot_encoders").mkdir()
    return tmp_path / "pivot_encoders"


@pytest.fixture
def load(folder):
    """load(family, ...): the handle of such an encoder, through a file and the loader node."""
    from omniportrait.lab.testbed import texts
    from omniportrait.models.pivot.file import save
    from omniportrait.nodes.pivot_encoder_loader import PivotEncoderLoader

    def through_a_file(family: str, **options):
        save(folder / "face.safetensors", texts.encoder(family, **options), step=5)
        with torch.inference_mode():
            return PivotEncoderLoader.execute("face.safetensors").result[0]

    return through_a_file


@pytest.fixture(autouse=True)
def no_leftovers():
    """Every test starts with an empty reference cache and must leave the global random state alone."""
    from omniportrait.sampling import reference as features

    features.forget_all()
    yield
    features.forget_all()
