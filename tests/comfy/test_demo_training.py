"""The demo's weights: what training computes is what ComfyUI computes from the exported file, and a resumed run ends
where an uninterrupted one does."""

from __future__ import annotations

import comfy.model_management
import comfy.sd
import comfy.supported_models
import comfy.taesd.taesd
import pytest
import safetensors.torch
import shards
import torch
from omniportrait.demo import architecture
from omniportrait.demo.autoencoder import MARK, PortraitAutoencoder
from omniportrait.demo.learning import denoising, loop, reconstruction
from omniportrait.demo.learning.examples import load_autoencoder
from omniportrait.demo.learning.pictures import open_pictures
from omniportrait.demo.learning.text import tokenize
from omniportrait.demo.random_weights import vae_state

SMALL = architecture.UNET | dict(model_channels=32)
PROMPT = "a smiling woman in a red t-shirt in a forest"


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(comfy.supported_models, "models", list(comfy.supported_models.models))
    monkeypatch.setattr(comfy.sd.VAE, "__init__", comfy.sd.VAE.__init__)
    architecture.register()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    shards.write_shard(folder, 6)
    return folder


@pytest.fixture(scope="module")
def vae_file(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    loop.write_tensors(file, shaken(PortraitAutoencoder(32, 32, 8, (1, 1), (1, 1))).state_dict())
    return file


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """With no parameter at its starting value: what starts at zero would hide what comes before it."""
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return module


@pytest.fixture
def exported(registered, data, vae_file, tmp_path, monkeypatch):
    """A Denoiser whose values are exact in half precision, and its checkpoint's path."""
    monkeypatch.setattr(denoising, "UNET", SMALL)
    torch.manual_seed(1)
    model = shaken(denoising.Denoiser(tokenize([PROMPT, ""]).unique())).eval()
    for value in model.parameters():
        value.data = value.data.half().float()
    pictures = open_pictures(data)
    options = denoising.arguments().parse_args(["--data", str(data), "--vae", str(vae_file), "--out", "unused"])
    latents = torch.randn(6, 2, 4, 32, 32, generator=torch.Generator().manual_seed(2)).half()
    file = tmp_path / "demo.safetensors"
    loop.write_tensors(file, denoising.checkpoint(model, options, pictures, latents))
    return model, file


def test_core_computes_what_training_does(exported, vae_file):
    model, file = exported
    patcher, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(file))
    assert isinstance(patcher.model.model_config, architecture.DemoModel)

    with torch.no_grad():
        expected = model.text(tokenize([PROMPT]))
    states = clip.encode_from_tokens(clip.tokenize(PROMPT)).float()
    torch.testing.assert_close(states, expected, atol=2e-3, rtol=2e-3)
    other = clip.encode_from_tokens(clip.tokenize("a woman")).float()
    assert (other - expected).abs().max() > 0.1

    noise = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    steps = torch.tensor([700, 40])
    sigma = model.sigmas[steps]
    noisy = noise * (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt()
    comfy.model_management.load_models_gpu([patcher])
    with torch.no_grad():
        predicted = model.predict(noise, steps, expected.repeat(2, 1, 1))
        denoised = patcher.model.apply_model(noisy, sigma, c_crossattn=expected.repeat(2, 1, 1))
    theirs = (noisy - denoised) / sigma.view(-1, 1, 1, 1)
    assert predicted.std() > 0.1
    torch.testing.assert_close(theirs, predicted, atol=0.02 * float(predicted.std()), rtol=0.02)

    ours = load_autoencoder(vae_file)
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        latent = ours.encode(picture.movedim(3, 1) * 2 - 1)
        again = ours.decode(latent).movedim(1, 3).add(1).div(2).clamp(0, 1)
    torch.testing.assert_close(vae.encode(picture), latent, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(vae.decode(latent), again, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_vae_runs_in_every_precision_and_in_tiles(registered, vae_file, dtype):
    vae = comfy.sd.VAE(sd=safetensors.torch.load_file(vae_file), dtype=dtype)
    assert isinstance(vae.first_stage_model, PortraitAutoencoder)
    assert {value.dtype for value in vae.first_stage_model.parameters()} == {dtype}
    assert vae.patcher.model is vae.first_stage_model
    latent = torch.randn(1, 4, 40, 40, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        whole = vae.decode(latent)
        tiles = vae.decode_tiled(latent, tile_x=32, tile_y=32, overlap=8)
    assert whole.shape == tiles.shape == (1, 320, 320, 3)
    assert float((whole - tiles).abs().mean()) < 0.01
    assert vae.encode(whole).shape == (1, 4, 40, 40)


def test_foreign_vae_is_untouched(registered):
    """Core's own class and values for TAESD, and our mark with an unknown format is not claimed."""
    state = vae_state(0)
    vae = comfy.sd.VAE(sd=dict(state), dtype=torch.float32)
    assert type(vae.first_stage_model) is comfy.taesd.taesd.TAESD
    for name, value in vae.first_stage_model.state_dict().items():
        assert torch.equal(value, state[name])
    vae = comfy.sd.VAE(sd=dict(state) | {MARK: torch.tensor([99])}, dtype=torch.float32)
    assert type(vae.first_stage_model) is comfy.taesd.taesd.TAESD
    assert comfy.sd.VAE(sd={}).first_stage_model is None


class SmallAutoencoder(PortraitAutoencoder):
    def __init__(self, wide=32, deep=32, fine=8, wide_blocks=(1, 1), deep_blocks=(1, 1)):
        super().__init__(wide, deep, fine, wide_blocks, deep_blocks)


@pytest.mark.parametrize("kind", ["vae", "base"])
def test_resumed_run_ends_where_a_whole_one_does(kind, data, vae_file, tmp_path, monkeypatch):
    monkeypatch.setattr(denoising, "UNET", SMALL)
    monkeypatch.setattr(reconstruction, "PortraitAutoencoder", SmallAutoencoder)
    module = {"vae": reconstruction, "base": denoising}[kind]
    pictures = open_pictures(data)
    results = []
    for name, pieces in (("whole", [[]]), ("pieces", [["--pause", "2"], ["--resume"]])):
        out = tmp_path / f"{name}.safetensors"
        common = ["--data", str(data), "--out", str(out), "--steps", "4", "--batch", "2", "--device", "cpu"]
        common += ["--vae", str(vae_file)] if kind == "base" else []
        for piece in pieces:
            module.train(module.arguments().parse_args([*common, *piece]), pictures)
        results.append(safetensors.torch.load_file(out))
        assert "100.0% step 4" in out.with_suffix(".log").read_text()
    whole, pieces = results
    assert whole.keys() == pieces.keys()
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
