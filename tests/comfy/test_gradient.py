"""The private pass: its gradient, its hooks, and that ComfyUI's own prediction never notices it."""

from __future__ import annotations

from dataclasses import replace

import comfy.samplers
import pytest
import torch
from omniportrait.backbone.attention import Recording, plain_attention, private_options, record_attention
from omniportrait.backbone.family import family_of
from omniportrait.guidance.omniportrait.guide import energy
from omniportrait.guidance.omniportrait.mask import resize_mask
from omniportrait.guidance.omniportrait.match import nearest, similarity
from omniportrait.guidance.omniportrait.settings import Settings
from omniportrait.lab.testbed import independent, small
from omniportrait.lab.testbed.independent import arguments_of
from omniportrait.sampling import passes
from omniportrait.sampling.patch import patch

SIGMA = 1.5
BARE = Settings(beta=0.3, ensemble=1)
"""One noise of the reference does where its mean is not what is asked."""


def reference_points(channels):
    return torch.randn(40, channels, generator=torch.Generator().manual_seed(9))


def energy_at(features):
    mask = torch.zeros(features.shape[-2:], dtype=torch.bool)
    mask[1:-1, 2:-2] = True
    reference, points = reference_points(features.shape[1]), features[0].permute(1, 2, 0)[mask]
    return energy(similarity(reference, points, nearest(reference, points), "mean"), 8.5)


def private_gradient(model, x, arguments, checkpointing=False, options=None):
    with torch.inference_mode(False), torch.enable_grad():
        twin, leaf = small.twin(model, checkpointing=checkpointing), x.clone().requires_grad_(True)
        block, sigma = twin.family.feature_block(-1), torch.full((1,), SIGMA)
        features, _ = twin.tap(block, leaf, sigma, arguments, private_options(options or {}))
        return torch.autograd.grad(energy_at(features.float()), leaf)[0]


def deep_copy_gradient(model, x, arguments):
    """The independent way."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.clone().requires_grad_(True)
        block = family_of(model).feature_block(-1)
        (features,) = independent.features(model, leaf, SIGMA, arguments, (block,))
        return torch.autograd.grad(energy_at(features.float()), leaf)[0]


@pytest.fixture
def case(family):
    with torch.inference_mode():
        x = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(5)) * SIGMA
        return family, x, arguments_of(family, x)


@pytest.mark.quick
@pytest.mark.parametrize("shape", ["sd15", "sdxl"])
def test_gradient_equals_autograd_through_a_deep_copy(shape):
    """In double precision, where no mistake passes for rounding."""
    model = getattr(small, shape)(dtype=torch.float64)
    with torch.inference_mode():
        x = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(5)).double() * SIGMA
        arguments = {name: value.double() for name, value in arguments_of(model, x).items()}
    expected = deep_copy_gradient(model, x, arguments)
    scale = float(expected.abs().max())
    assert expected.dtype == torch.float64 and scale > 0
    found = private_gradient(model, x, arguments)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10 * scale)


def test_checkpointing_gives_the_same_gradient(case):
    """With attention patches in place: a recomputation that saw another block's number would silently skip them."""
    model, x, arguments = case
    family = family_of(model)
    sites = list(family.transformer_sites(family.feature_block(-1)))

    def twist(q, k, v, extra):
        return plain_attention(q * 1.5, k, v, extra["n_heads"])

    def options():
        return {"patches_replace": {"attn2": {site.key: twist for site in sites}}}

    plain = private_gradient(model, x, arguments, False, options())
    assert not torch.allclose(plain, private_gradient(model, x, arguments))  # the patches matter
    checkpointed = private_gradient(model, x, arguments, True, options())
    torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-6 * float(plain.abs().max()))


def test_no_weight_asks_for_a_gradient(family):
    """ComfyUI's own do on most cores; autograd would then keep the input of every layer, too."""
    with torch.inference_mode(False):
        unet = small.twin(family).net
    assert len(list(unet.parameters())) == len(list(family.model.diffusion_model.parameters()))
    assert not any(p.requires_grad for p in unet.parameters())


def test_half_precision_keeps_the_gradients_direction(vae):
    """The scaled hand-over at the feature: fp16 weights and activations against the same model in fp32."""
    gradients = {}
    for dtype in (torch.float32, torch.float16):
        model = small.sd15()
        if dtype == torch.float16:
            model = small.sd15(dtype=torch.float16)
        gradients[dtype] = one_step(model, vae)[1]
    a, b = (g.flatten() for g in gradients.values())
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.99


SD15_CROSS = [("input", 7, 0), ("input", 8, 0), ("output", 3, 0), ("output", 4, 0), ("output", 5, 0)]
SD15_SELF = [("input", 4, 0), ("input", 5, 0)]
SDXL_DEEP = [("input", 7), ("input", 8), ("middle", 0), ("output", 0), ("output", 1), ("output", 2)]


@pytest.mark.parametrize(
    "shape, cross, self_, block",
    [
        ("sd15", set(SD15_CROSS), set(SD15_SELF), 5),
        ("sdxl", {(*place, i) for place in SDXL_DEEP for i in (0, 1)}, {(*place, 1) for place in SDXL_DEEP}, 2),
    ],
)
def test_sites_at_native_size(shape, cross, self_, block):
    """SD1.5 at 512 and SDXL at 1024, by hand from the architectures."""
    family = family_of(getattr(small, shape)())
    size = (64, 64) if shape == "sd15" else (128, 128)
    sites = family.sites(block, size)
    assert family.feature_block(-1) == block
    assert set(sites.cross) == cross and set(sites.self_) == self_


def one_step(model, vae, cfg=7.5, settings=None, sigma=SIGMA):
    """(plain denoised, gradient, recordings, prediction inside the guided call) of one guided call."""
    settings = settings or BARE
    seen = {"recordings": [], "rows": []}
    original = passes.run_rows

    def spy(*args, **kwargs):
        rows = original(*args, **kwargs)
        seen["rows"].append(rows)
        seen["recordings"].append(rows.recording)
        return rows

    class Once(comfy.samplers.Sampler):
        def sample(
            self, wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
        ):
            return wrap(noise * sigmas[0], sigmas[0].expand(len(noise)), **extra_args)

    def call(m):
        with torch.inference_mode():
            guider = comfy.samplers.CFGGuider(m)
            guider.set_conds(small.annotated(model), small.conditioning(model, 2))
            guider.set_cfg(cfg)
            noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(3))
            return guider.sample(
                noise, torch.zeros_like(noise), Once(), torch.tensor([sigma, 0.0]), disable_pbar=True, seed=0
            )

    inner = []

    def tap(args):
        inner.append(args["denoised"].clone())
        return args["denoised"]

    passes.run_rows = spy
    try:
        with torch.inference_mode():
            guided_model = patch(model, vae, settings, observe=lambda trace: seen.__setitem__("trace", trace))
        guided_model.set_model_sampler_post_cfg_function(tap)
        guided = call(guided_model)
    finally:
        passes.run_rows = original
    plain = call(model)
    assert len(seen["trace"].steps) == 1 and not seen["trace"].skipped, seen["trace"].summary()
    scale = model.model.latent_format.scale_factor
    return plain, (plain - guided) * scale / sigma, seen, inner[0] / scale


def test_prediction_of_a_guided_step_is_bit_equal(family, vae):
    plain, gradient, _, inner = one_step(family, vae)
    assert gradient.abs().max() > 0
    assert torch.equal(inner, plain)


def test_every_hook_is_hit_exactly_once(family, vae):
    seen = one_step(family, vae)[2]
    facts = family_of(family)
    sites = facts.sites(facts.feature_block(-1), (32, 32))
    wanted = {("attn2", key) for key in sites.cross} | {("attn1", key) for key in sites.self_}
    (recording,) = seen["recordings"]
    assert recording.hits == dict.fromkeys(wanted, 1)


def test_every_hook_is_hit_once_under_checkpointing_too(family, vae):
    seen = one_step(family, vae, settings=replace(BARE, checkpointing="on"))[2]
    assert set(seen["recordings"][0].hits.values()) == {1}


def test_gradient_is_zero_outside_the_mask(family, vae):
    _, gradient, seen, _ = one_step(family, vae)
    mask = seen["trace"].steps[0].mask
    assert 0 < mask.sum() < mask.numel()
    assert gradient[0][:, ~mask].abs().max() < 1e-5 * gradient.abs().max()


def test_calibrated_gradient_is_capped_against_the_cfg_difference(sd15, vae):
    """RMS inside the mask of g is at most clip x RMS of w (eps_c - eps_u), and reaches it when the gain is huge."""
    plain, gradient, seen, _ = one_step(sd15, vae, settings=replace(BARE, gain=1e9, clip=0.3))
    one = one_step(sd15, vae, cfg=1.0, settings=replace(BARE, gain=1.0, clip=0.0))[0]
    scale = sd15.model.latent_format.scale_factor
    # denoised_cfg = u + w (c - u) with w = 7.5, and cfg 1 gives c alone: w (c - u) = (cfg - c) * w / (w - 1)
    difference = (plain - one) * scale / SIGMA * 7.5 / 6.5
    mask = seen["trace"].steps[0].mask
    ratio = gradient[0][:, mask].square().mean().sqrt() / difference[0][:, mask].square().mean().sqrt()
    assert float(ratio) == pytest.approx(0.3, rel=1e-3)


@pytest.mark.quick
def test_literal_is_equation_11(sd15, vae):
    """Sum, no gain, no clip: the gradient equals autograd's on the deep copy with the run's own mask and reference."""
    _, gradient, seen, _ = one_step(sd15, vae, settings=BARE.in_mode("literal"))
    from omniportrait.sampling import reference as features

    (reference,) = features._cache.values()
    mask = seen["trace"].steps[0].mask
    x = seen["rows"][0].x.detach()
    points = resize_mask(mask[None], tuple(seen["rows"][0].features.shape[-2:]))[0]
    captured = {}

    def literal(features_):
        rows = features_[0].permute(1, 2, 0)[points]
        match = torch.cdist(reference.points("cpu"), rows.detach()).argmin(dim=1)
        halves = (torch.nn.functional.cosine_similarity(rows[match], reference.points("cpu")) + 1) / 2
        captured["S"] = halves.sum()
        return 8.5 / (1 + halves.sum())

    global energy_at
    kept, energy_at = energy_at, literal
    try:
        expected = deep_copy_gradient(sd15, x, arguments_of(sd15, x)) * (1 + SIGMA**2) ** 0.5
    finally:
        energy_at = kept
    expected = expected[0] * mask
    assert captured["S"] > 0
    torch.testing.assert_close(gradient[0], expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_self_attention_product_without_the_matrix(sd15):
    """A_s . m through SDPA with the map as value, against the explicit matrix, mean over heads."""
    recording = record_attention({}, family_of(sd15).sites(5, (32, 32)))
    key = ("input", 4, 0)
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 64, 24, generator=generator) for _ in range(2))
    recording.self_[key], recording.sizes[key] = (q, k, 3), (8, 8)
    maps = torch.rand(1, 8, 8, generator=generator)
    rows = []
    for head in range(3):
        a, b = q[0, :, head * 8 : head * 8 + 8], k[0, :, head * 8 : head * 8 + 8]
        rows.append(torch.softmax(a @ b.T / 8**0.5, dim=1) @ maps.flatten())
    torch.testing.assert_close(recording.smooth(maps)[0].flatten(), torch.stack(rows).mean(dim=0))


def test_repeated_columns_are_summed():
    """Conditionings padded by repetition split a token's attention over its copies."""
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(1, 16, 8, generator=generator), torch.randn(1, 5, 8, generator=generator)
    once, twice = Recording(), Recording()
    once.cross["b"], once.sizes["b"], once.self_["b"] = (q, k, 2), (4, 4), (q, q, 2)
    twice.cross["b"], twice.sizes["b"], twice.self_["b"] = (q, k.repeat(1, 2, 1), 2), (4, 4), (q, q, 2)
    torch.testing.assert_close(twice.token_map(3, 5), once.token_map(3, 5))
    explicit = [
        torch.softmax(q[0, :, h * 4 : h * 4 + 4] @ k[0, :, h * 4 : h * 4 + 4].T / 2, dim=1)[:, 3] for h in range(2)
    ]
    torch.testing.assert_close(once.token_map(3, 5)[0].flatten(), torch.stack(explicit).mean(dim=0))


def test_a_text_made_longer_reads_its_own_column_only(sd15, vae):
    """Conditioning (Concat) keeps the record and appends another text: the mask is the attention on the subject
    alone."""
    asked = []
    original = Recording.token_map

    def spy(self, index, token_count):
        asked.append((index, token_count))
        return original(self, index, token_count)

    (text, values), (other, _) = small.annotated(sd15)[0], small.conditioning(sd15, 8)[0]
    longer = [[torch.cat([text, other], dim=1), values]]
    Recording.token_map = spy
    try:
        with torch.inference_mode():
            guided = patch(sd15, vae, Settings())
        small.sample(guided, longer)
    finally:
        Recording.token_map = original
    assert set(asked) == {(5, 2 * small.TOKENS), (5, small.TOKENS)}  # the second is the reference's own text
