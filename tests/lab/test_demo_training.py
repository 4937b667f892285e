"""The demo's weights: what training computes is what ComfyUI computes from the exported file, and a resumed run ends
where an uninterrupted one does."""

from __future__ import annotations

from functools import partialmethod
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.supported_models
import comfy.taesd.taesd
import pytest
import safetensors.torch
import torch
from omniportrait.demo import architecture
from omniportrait.demo.autoencoder import MARK, PortraitAutoencoder
from omniportrait.lab.learning import denoising, reading, reconstruction
from omniportrait.lab.learning import pictures as learning_pictures
from omniportrait.lab.learning.examples import Examples, cached_latents, cached_weights, of_place, stamps
from omniportrait.lab.learning.pictures import open_pictures, pixel_weights, to_float
from omniportrait.lab.learning.text import TextModel, tokenize
from omniportrait.lab.testbed import shards
from omniportrait.lab.testbed.checkpoints import vae_state
from omniportrait.training.files import halved, write_tensors

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
    write_tensors(file, halved(shaken(PortraitAutoencoder(32, 32, 8, (1, 1), (1, 1))).state_dict()))
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
    latents = torch.randn(6, 4, 32, 32, generator=torch.Generator().manual_seed(2)).half()
    file = tmp_path / "demo.safetensors"
    write_tensors(file, halved(denoising.checkpoint(model, vae_file, pictures, latents)))
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

    ours = PortraitAutoencoder.load(vae_file)
    picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        latent = ours.encode(picture.movedim(3, 1) * 2 - 1)
        again = ours.decode(latent).movedim(1, 3).add(1).div(2).clamp(0, 1)
    torch.testing.assert_close(vae.encode(picture), latent, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(vae.decode(latent), again, atol=2e-2, rtol=2e-2)


@pytest.mark.slow
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
    assert vae.encode(whole[:, :64, :96]).shape == (1, 4, 8, 12)


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


@pytest.fixture
def small_training(train, monkeypatch):
    """kind ("vae", "base" or "words"), file and further options to a training of at most four steps."""
    with_small_models(monkeypatch)
    return train


def with_small_models(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(denoising, "UNET", SMALL)
    patch.setattr(reconstruction, "PortraitAutoencoder", SmallAutoencoder)
    patch.setattr(denoising.Denoiser, "sample", partialmethod(denoising.Denoiser.sample, count=2))  # of the sheet


@pytest.fixture(scope="module")
def train(data, vae_file):
    pictures = open_pictures(data)

    def run(kind: str, out, *more: str):
        module = {"vae": reconstruction, "base": denoising, "words": reading}[kind]
        given = ["--data", str(data), "--out", str(out), "--steps", "4", "--batch", "2", "--device", "cpu", *more]
        given += ["--vae", str(vae_file)] if kind == "base" and "--vae" not in more else []
        module.train(module.arguments().parse_args(given), pictures)
        return safetensors.torch.load_file(out)

    return run


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory) -> Path:
    """The checkpoint of a whole run of the base, its state and its sheet beside it: to be read, and left as it is."""
    out = tmp_path_factory.mktemp("trained") / "base.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        with_small_models(patch)
        train("base", out)
    assert out.with_name("base-000004.png").is_file()
    return out


BARE = ("--no-sheets",)
"""A sheet takes longer than four steps."""


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vae", "base"])
def test_resumed_run_ends_where_a_whole_one_does(kind, small_training, trained, tmp_path):
    """The same command goes on; once it is done it changes nothing, and --restart ends there again."""
    bare = BARE if kind == "base" else ()
    whole = safetensors.torch.load_file(trained) if bare else small_training(kind, tmp_path / "whole.safetensors")
    out = tmp_path / "pieces.safetensors"
    log = out.with_suffix(".log")
    begun = small_training(kind, out, "--pause", "2", *bare)
    pieces = small_training(kind, out, *bare)
    assert not equal(begun, whole) and equal(pieces, whole)
    assert log.read_text().count("100.0% step 4") == 1 and "budget is spent" not in log.read_text()
    assert equal(small_training(kind, out, *bare), whole) and "budget is spent" in log.read_text()
    assert equal(small_training(kind, out, "--restart", *bare), whole)
    assert log.read_text().count("100.0% step 4") == 2


@pytest.mark.slow
def test_words_are_taught_in_pieces_and_go_on_into_the_base(small_training, trained, data, tmp_path):
    """In two pieces as in one, with the rest of the base as it was; `make base` then says the same words."""
    before = safetensors.torch.load_file(trained)
    shards.write_shard(data, 3, "held_out-000000")
    taught = ("--base", str(trained))
    whole = small_training("words", tmp_path / "whole.safetensors", *taught)
    out = tmp_path / "pieces.safetensors"
    begun = small_training("words", out, *taught, "--pause", "2")
    pieces = small_training("words", out, *taught)
    assert not equal(begun, whole) and equal(pieces, whole)
    few = small_training("words", tmp_path / "few.safetensors", *taught, "--blocks-rate", "0")
    for learnt, parts in ((whole, reading.BLOCKS), (few, [".attn2.to_"])):
        changed = {name for name, value in learnt.items() if not torch.equal(value, before[name])}
        assert changed and all(any(part in name for part in parts) for name in changed)
    assert "held-out people's words gain" in out.with_suffix(".log").read_text()
    told = ("--start", str(out), "--words", str(out.with_suffix(".state.pt")), "--word-share", "1")
    after, without = (
        small_training("base", tmp_path / f"{len(more)}.safetensors", *more, *BARE) for more in (told, told[:2])
    )
    assert not equal(after, without)


def test_a_place_weighs_alike_in_all_pictures(data):
    """A step's weights are no picture's own: they are the mean of all, place by place."""
    each = torch.rand(6, 32, 32, generator=torch.Generator().manual_seed(6))
    expected = sum(each) / 6
    torch.testing.assert_close(of_place(each), expected)
    records = [record for records in open_pictures(data).records for record in records]
    examples = Examples(torch.randn(6, 4, 32, 32).half(), each.half(), records, 0)
    torch.testing.assert_close(examples.batch(2, 0, 0)[1], expected, atol=1e-3, rtol=1e-3)


def test_words_that_a_checkpoint_has_not_seen_begin_apart():
    """In the file they are all alike, and what is alike in all that it computes stays so."""
    seen, more = torch.tensor([320, 2368, 49406, 49407]), torch.tensor([320, 786, 2368, 2533, 49406, 49407])
    first, then = TextModel(seen), TextModel(more)
    then.read(first.exported())
    table = then.core.text_model.embeddings.token_embedding.weight
    torch.testing.assert_close(table[[0, 2, 4, 5]], first.core.text_model.embeddings.token_embedding.weight)
    assert (table[1] - table[3]).abs().mean() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".state.pt", ".safetensors"])
def test_start_begins_with_the_weights_of_another_run(kind, small_training, trained, tmp_path):
    """Of its state or of its checkpoint alike; the words that no caption holds are their mean, rounded once more."""
    ended = safetensors.torch.load_file(trained)
    start = ("--start", str(trained.with_suffix(kind)), "--pause", "0", *BARE)
    begun = small_training("base", tmp_path / "next.safetensors", *start)
    for name, value in ended.items():
        torch.testing.assert_close(begun[name], value, atol=1e-4, rtol=2e-3)
    assert not equal(ended, small_training("base", tmp_path / "other.safetensors", "--pause", "0", *BARE))


@pytest.mark.slow
def test_a_state_of_another_run_is_refused(small_training, vae_file, tmp_path):
    """Other batches and another autoencoder would train on something else in the middle; another model has other
    shapes. The state stays as it was."""
    out = tmp_path / "base.safetensors"
    small_training("base", out, "--pause", "1", *BARE)
    state = out.with_suffix(".state.pt")
    before = state.read_bytes()
    other_vae = tmp_path / "other.safetensors"
    write_tensors(other_vae, halved({k: v + 0.01 for k, v in safetensors.torch.load_file(vae_file).items()}))
    wrong = {"begun with batch 2, but is to go on with 3": ["--batch", "3"], "begun with seed 0": ["--seed", "1"]}
    wrong["begun with autoencoder"] = ["--vae", str(other_vae)]
    for sentence, more in wrong.items():
        with pytest.raises(SystemExit, match=sentence):
            small_training("base", out, *more)
    assert state.read_bytes() == before

    autoencoder = out.with_name("vae.safetensors")
    autoencoder.with_suffix(".state.pt").write_bytes(before)
    with pytest.raises(SystemExit, match="does not fit the model and data"):
        small_training("vae", autoencoder)

    old = torch.load(state, weights_only=True)
    del old["terms"]  # as states were written once
    torch.save(old, state)
    small_training("base", out, *BARE)
    assert "100.0% step 4" in out.with_suffix(".log").read_text()


def test_what_is_kept_follows_the_shards_and_the_weights(vae_file, tmp_path, monkeypatch):
    """New shards under old names, of as many pictures, and another table of weights are not answered from old files."""
    cpu, cache = torch.device("cpu"), tmp_path / "cache"

    def kept():
        pictures, shards_now = open_pictures(tmp_path), stamps(tmp_path)
        latents = cached_latents(pictures, shards_now, vae_file, cache, cpu)
        return pictures, latents, cached_weights(pictures, shards_now, cache)

    shards.write_shard(tmp_path, 2)
    _, first, weights = kept()
    files = {file.name: file.stat().st_mtime_ns for file in cache.iterdir()}
    assert torch.equal(kept()[1], first), "the second call should read the files"
    assert {file.name: file.stat().st_mtime_ns for file in cache.iterdir()} == files

    shards.write_shard(tmp_path, 2, seed=1)
    pictures, again, _ = kept()
    with torch.no_grad():
        own = PortraitAutoencoder.load(vae_file).encode(to_float(pictures.batch(torch.arange(2))[0]))
    error = (again.float() - own).abs().mean()
    assert error < 0.1 * (first.float() - own).abs().mean()

    monkeypatch.setattr(learning_pictures, "FACE_WEIGHT", 5.0)
    raw = pixel_weights(pictures.batch(torch.arange(2))[1])
    mean = torch.nn.functional.avg_pool2d(raw, 8)[:, 0]
    torch.testing.assert_close(kept()[2].float(), mean / mean.mean(), atol=2e-3, rtol=2e-3)
    assert not torch.equal(kept()[2], weights)
