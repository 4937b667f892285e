"""The CLIP of Eq. 10 and 11: a small open_clip model behind a decoder, and the portrait world's towers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omniportrait.lab.testbed import small, texts
from omniportrait.training.base import Base
from omniportrait.training.spf_portrait.clip import OpenClip, load_clip
from omniportrait.training.spf_portrait.config import Config, Enhance
from omniportrait.training.spf_portrait.latent_towers import LatentTowers

NAME = "omniportrait-test-tiny"
SHAPE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """open_clip's checkpoint of a model with random weights."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    (folder / f"{NAME}.json").write_text(json.dumps(SHAPE))
    open_clip.add_model_config(folder / f"{NAME}.json")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(NAME)
    torch.save(model.state_dict(), folder / "tiny.pt")
    return folder / "tiny.pt"


@pytest.fixture(scope="module")
def frozen() -> Base:
    return Base(small.sd15(inference=False), texts.clip("sd15"), small.vae(), Config(precision="fp32"))


@pytest.mark.parametrize("decode", ["vae", "preview"])
def test_gradients_of_the_image_vector_reach_the_latents(file, frozen, decode):
    clip = OpenClip(frozen, file, NAME, decode)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    moved = latents.clone().requires_grad_(True)
    vectors = clip.image(moved)
    assert vectors.shape == (2, 16) and clip.text("wearing a hat").shape == (16,)
    with torch.no_grad():
        torch.testing.assert_close(clip.image(latents), vectors.detach(), rtol=1e-4, atol=1e-5)
    (slope,) = torch.autograd.grad(vectors[0].sum(), moved)
    assert float(slope[0].abs().max()) > 0 and float(slope[1].abs().max()) == 0


def test_pictures_are_those_of_vae_decode(file, frozen):
    clip = OpenClip(frozen, file, NAME, "vae")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = clip._decoded(latents).clamp(0, 1)
    expected = frozen.vae.decode(frozen.net.process_latent_out(latents)).movedim(-1, 1).float()
    torch.testing.assert_close(found, expected.clamp(0, 1), rtol=1e-3, atol=1e-3)


def test_files_are_told_apart_and_wrong_ones_are_one_sentence(file, frozen, tmp_path):
    LatentTowers(["wearing a hat"]).save(tmp_path / "towers.safetensors", {})

    def asked(path: Path, model: str = NAME) -> Config:
        return Config(enhance=Enhance(kind="difference", clip=str(path), model=model))

    assert isinstance(load_clip(asked(tmp_path / "towers.safetensors"), frozen), LatentTowers)
    assert isinstance(load_clip(asked(file), frozen), OpenClip)
    assert load_clip(Config(), frozen) is None
    with pytest.raises(ValueError, match="There is no file"):
        load_clip(asked(tmp_path / "none.pt"), frozen)
    (tmp_path / "broken.pt").write_bytes(b"no model")
    with pytest.raises(ValueError, match="cannot be read as open_clip's"):
        load_clip(asked(tmp_path / "broken.pt"), frozen)
