"""What the training asks of a frozen base model, on small models of SD1.5's and SDXL's shapes."""

from __future__ import annotations

import comfy.model_management
import pytest
import torch
from omniportrait.guidance.omniportrait.objective import pooled
from omniportrait.lab.testbed import small, texts
from omniportrait.training.base import TOKENS, Base, load_base
from omniportrait.training.data.index import LATE_NOUN, NO_NOUN, BadSample
from omniportrait.training.pivot.config import Config

SIDE = 16
"""Side of the latents."""


@pytest.fixture(params=["sd15", "sdxl"])
def base(request, vae) -> Base:
    return make_base(request.param, vae)


def make_base(family: str, vae, **options) -> Base:
    config = Config(precision="fp32", **({"checkpointing": False} | options))
    return Base(getattr(small, family)(inference=False), texts.clip(family), vae, config)


def inputs(base: Base, seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    vector = base.net.model_config.unet_config.get("adm_in_channels")
    return {
        "latents": noise(2, 4, SIDE, SIDE),
        "noise": noise(2, 4, SIDE, SIDE),
        "timesteps": torch.tensor([100, 700]),
        "rows": noise(2, TOKENS, base.text_width),
        "vectors": noise(2, 1280) if vector else torch.zeros(2, 0),
        "columns": [5, 9],
    }


@pytest.mark.quick
def test_prediction_is_comfyuis_own(base):
    given = inputs(base)
    found = base.predict(**given)
    for row in range(2):
        sigma = base.sigma(given["timesteps"])[row : row + 1]
        x = given["latents"][row : row + 1] + given["noise"][row : row + 1] * sigma
        more = {"pooled_output": given["vectors"][row : row + 1]} if given["vectors"].shape[1] else {}
        text = [[given["rows"][row : row + 1], {"width": 8 * SIDE, "height": 8 * SIDE, **more}]]
        # One Euler step to 0 gives the denoised picture.
        denoised = small.sample(
            base.model, text, sampler="euler", cfg=1.0, sigmas=torch.tensor([float(sigma), 0.0]), steps=1,
            noise=given["noise"][row : row + 1], latent=base.net.process_latent_out(given["latents"][row : row + 1]),
        )  # fmt: skip
        expected = (x - base.net.process_latent_in(denoised)) / sigma
        torch.testing.assert_close(found.noise[row : row + 1].detach(), expected, rtol=1e-3, atol=1e-3)


def test_attention_is_the_softmax_over_the_text_for_each_samples_own_token(base):
    given = inputs(base)
    unet = base.net.diffusion_model
    expected: dict[tuple, torch.Tensor] = {}

    def spy(key: tuple, layer: torch.nn.Module) -> None:
        def look(module, arguments, keywords):
            q, k = module.to_q(arguments[0]), module.to_k(keywords["context"])
            q, k = (t.view(*t.shape[:2], module.heads, -1).transpose(1, 2) for t in (q, k))
            weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1).mean(1)
            expected[key] = torch.stack([weights[row, :, column] for row, column in enumerate(given["columns"])])

        hooks.append(layer.register_forward_pre_hook(look, with_kwargs=True))

    hooks: list = []
    sites = base.family.sites(base.family.feature_block(-1), (SIDE, SIDE)).cross
    blocks = {"input": unet.input_blocks, "output": unet.output_blocks, "middle": [unet.middle_block]}
    for name, number, inner in sites:
        (transformer,) = [layer for layer in blocks[name][number] if hasattr(layer, "transformer_blocks")]
        spy((name, number, inner), transformer.transformer_blocks[inner].attn2)
    # Hooks live on the model's modules, not on the private tree, so ComfyUI's own forward shows what they see.
    sigma = base.sigma(given["timesteps"])
    x = given["latents"] + given["noise"] * sigma.view(-1, 1, 1, 1)
    more = {"pooled_output": given["vectors"]} if given["vectors"].shape[1] else {}
    conds = base.net.extra_conds(noise=x, device=x.device, cross_attn=given["rows"], width=128, height=128, **more)
    with torch.no_grad():
        base.net.apply_model(x, sigma, **{name: cond.cond for name, cond in conds.items()})
    for hook in hooks:
        hook.remove()
    assert set(expected) == set(sites)
    side = int(next(iter(expected.values())).shape[1] ** 0.5)
    mean = pooled(torch.stack(list(expected.values())).mean(0).view(2, side, side))
    torch.testing.assert_close(base.predict(**given).maps.detach(), mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_that_comfyui_moves_for_another_model_are_let_go_and_found_again(vae, checkpointing):
    base = make_base("sd15", vae, checkpointing=checkpointing)
    given = inputs(base)
    before = base.predict(**given).noise
    tree = base.unet().net
    base.latents(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert not list(tree.parameters()) and list(base.net.diffusion_model.parameters())
    with torch.no_grad():  # off the device and back to it: the same numbers in another place
        for weight in base.net.diffusion_model.parameters():
            place, weight.data = weight.data, weight.data.clone()
            place.fill_(float("nan"))
    assert torch.equal(base.predict(**given).noise, before)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_gradients_reach_the_text_the_same_with_checkpointing(family, vae):
    """Both of Eq. 5's terms, with the same weights; nothing of the model gets a gradient."""
    results = []
    for checkpointing in (False, True):
        base = make_base(family, vae, checkpointing=checkpointing)
        given = inputs(base)
        given["rows"].requires_grad_(True)
        found = base.predict(**given)
        terms = (found.noise - given["noise"]).square().mean(), (found.maps / found.maps.amax()).square().mean()
        results.append([torch.autograd.grad(term, given["rows"], retain_graph=True)[0] for term in terms])
        assert all(weight.grad is None and not weight.requires_grad for weight in base.net.parameters())
    for kept, recomputed in zip(*results, strict=True):
        assert kept.abs().max() > 0
        torch.testing.assert_close(recomputed, kept, rtol=1e-4, atol=1e-6 * float(kept.abs().max()))


def test_gradient_of_the_localisation_is_the_change_of_the_loss(vae):
    """A small step against the gradient lowers the loss by what the gradient says."""
    base = make_base("sd15", vae)
    given = inputs(base)
    given["rows"].requires_grad_(True)
    target = torch.rand(2, *base.predict(**given).maps.shape[1:], generator=torch.Generator().manual_seed(1))

    def value() -> torch.Tensor:
        return (base.predict(**given).maps - target).square().mean()

    before = value()
    (gradient,) = torch.autograd.grad(before, given["rows"])
    step = 0.05 / gradient.norm()
    with torch.no_grad():
        given["rows"] -= step * gradient
        change = float(value() - before)
        given["rows"] += 2 * step * gradient
        change = (change - float(value() - before)) / 2
    assert change == pytest.approx(-float(step * gradient.square().sum()), rel=0.05)


def test_text_states_are_those_of_the_conditioning(base):
    family = "sdxl" if base.text_width == 2048 else "sd15"
    clip = texts.clip(family)
    text = base.text("a photo of a woman in a garden", "woman")
    ((rows, more),) = texts.encode(clip, "a photo of a woman in a garden")
    assert torch.equal(text.rows, rows[0].float()) and text.column == 5
    assert torch.equal(text.pooled, more["pooled_output"][0].float())
    assert torch.equal(base.empty_text().rows, texts.encode(clip, "")[0][0][0].float())


def test_brackets_of_a_caption_are_no_emphasis(base):
    plain, marked = (base.text(f"a woman {each}", "woman") for each in ("in a (red) coat", "in a (red:1.4) coat"))
    assert plain.column == marked.column == 2
    tokens = base.clip.tokenize("a woman in a \\(red\\) coat")
    assert torch.equal(plain.rows, base.clip.encode_from_tokens(tokens)[0].float())


def test_second_occurrence_and_long_captions(base):
    assert base.text("a woman beside a woman", "woman", 1).column == 5
    long = base.text("a woman " + "very " * 100 + "far", "woman")
    assert long.rows.shape[0] == TOKENS and long.column == 2
    with pytest.raises(BadSample, match=LATE_NOUN):
        base.text("very " * 80 + "far woman", "woman")
    with pytest.raises(BadSample, match=NO_NOUN):
        base.text("a woman", "man")


def test_latents_are_those_of_vae_encode(base):
    pictures = torch.randint(0, 255, (2, 3, 64, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = base.latents(pictures)
    expected = base.vae.encode(pictures.movedim(1, -1).float() / 255) * base.net.latent_format.scale_factor
    torch.testing.assert_close(found, expected.float().cpu())
    assert found.shape == (2, 4, 8, 6)


def test_latents_where_the_memory_does_not_suffice_are_comfyuis_tiled_ones(base, monkeypatch):
    """ComfyUI falls back to tiles by itself, but that works under inference mode alone, as nodes run; training on what
    comes of it does not."""
    pictures = torch.randint(0, 255, (2, 3, 64, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    whole, encode, tried = base.latents(pictures), base.vae.first_stage_model.encode, []

    def full(images: torch.Tensor) -> torch.Tensor:
        tried.append(len(images))
        if len(images) > 1:
            raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory")
        return encode(images)

    monkeypatch.setattr(base.vae.first_stage_model, "encode", full)
    found = base.latents(pictures)
    assert tried[0] == 2 and 1 in tried and not found.is_inference()
    with torch.inference_mode():
        expected = base.vae.encode(pictures.movedim(1, -1).float() / 255) * base.net.latent_format.scale_factor
    assert torch.equal(found, expected)
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-4)


def test_other_errors_of_the_vae_are_told(base, monkeypatch):
    def broken(_):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(base.vae.first_stage_model, "encode", broken)
    with pytest.raises(RuntimeError, match="device-side assert"):
        base.latents(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_gpu_without_bf16_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    """ComfyUI would take fp16 instead, whose gradients vanish where the loss is not scaled."""
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda device: device.type != "cuda")
    (tmp_path / "base.safetensors").write_bytes(b"not even a model")
    with pytest.raises(ValueError, match=r"^This GPU does not compute in bf16[^.]*: add --set precision=fp32\.$"):
        load_base(Config(checkpoint=str(tmp_path / "base.safetensors"), precision="bf16"))
