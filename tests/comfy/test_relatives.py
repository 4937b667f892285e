"""Relatives of the plain checkpoints and other packs on the same model."""

from __future__ import annotations

import comfy.ldm.modules.attention
import pytest
import torch
from comfy_extras import nodes_freelunch, nodes_model_advanced, nodes_pag, nodes_sag
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import (
    assert_checkpointing_keeps_the_gradient,
    assert_effective,
    assert_guided,
    change,
    core,
    guide,
    guided,
    watched,
)
from parameters import in_turn


@pytest.mark.parametrize("shape", ["sd20", "sdxl"])
def test_v_prediction(vae, shape):
    model = getattr(small, shape)(v_prediction=True)
    assert model.model.model_type.name == "V_PREDICTION"
    positive = small.annotated(model)
    plain = small.sample(model, positive)
    picture, trace = watched(model, vae, positive)
    assert_guided(trace)
    assert_effective(picture, plain)


@pytest.mark.parametrize("sampling", ["eps", "v_prediction", "edm"])
def test_continuous_edm(sdxl, vae, sampling):
    """sigma up to 120; the window is that of the same sigma in Stable Diffusion's schedule."""
    node = nodes_model_advanced.ModelSamplingContinuousEDM
    (model,) = core(node, model=sdxl, sampling=sampling, sigma_max=120.0, sigma_min=0.002)
    positive = small.annotated(sdxl)
    options = {"scheduler": "karras", "steps": 6}
    plain = small.sample(model, positive, **options)
    picture, trace = watched(model, vae, positive, **options)
    assert_guided(trace)
    assert_effective(picture, plain)
    assert all(step.sigma <= 2.29 for step in trace.steps)
    assert torch.equal(small.sample(model, positive, **options), plain)


@pytest.mark.parametrize("sampling, zsnr", [("v_prediction", True), ("lcm", False)])
def test_discrete_sampling_patches(sd15, vae, sampling, zsnr):
    (model,) = core(nodes_model_advanced.ModelSamplingDiscrete, model=sd15, sampling=sampling, zsnr=zsnr)
    positive = small.annotated(sd15)
    plain = small.sample(model, positive)
    picture, trace = guided(model, vae, positive)
    assert_guided(trace)
    assert_effective(picture, plain)


def adapter(model, block, calls):
    """IPAdapter's way: attention over extra keys that a node made, so inference tensors, added to the block's own."""
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(21)
        extra = torch.randn(1, 4, 64, generator=generator)

    def replace(q, k, v, extra_options):
        attention = comfy.ldm.modules.attention.optimized_attention
        heads = extra_options["n_heads"]
        with torch.no_grad():
            keys = extra.repeat(len(q), 1, q.shape[-1] // 64 + 1)[..., : q.shape[-1]]
        calls.append((tuple(extra_options["block"]), torch.is_grad_enabled(), len(q)))
        return attention(q, k, v, heads) + 0.5 * attention(q, keys, keys * extra.mean(), heads)

    patched = model.clone()
    patched.set_model_attn2_replace(replace, *block)
    return patched


@in_turn(block=[("input", 1), ("input", 2), ("input", 4), ("middle", 0)], checkpointing=["off", "on"])
def test_ip_adapter_like_patch(sd15, vae, block, checkpointing):
    """It is called in the private pass too, on recorded and other blocks, though its tensors refuse autograd."""
    calls = []
    model, positive = adapter(sd15, block, calls), small.annotated(sd15)
    plain = small.sample(model, positive)
    assert not torch.allclose(plain, small.sample(sd15, positive), rtol=1e-3, atol=1e-3)
    calls.clear()
    picture, trace = watched(model, vae, positive, settings={"checkpointing": checkpointing})
    assert_guided(trace)
    assert_effective(picture, plain)
    with_gradient = [call for call in calls if call[1]]
    assert len(with_gradient) >= len(trace.steps)
    assert {(block, rows) for block, _, rows in with_gradient} == {(block, 1)}
    assert torch.equal(small.sample(model, positive), plain)


def test_patch_with_inference_weights_under_checkpointing(sd15, vae):
    """A linear layer of another pack, made under inference mode: the recomputation meets it outside of the pass."""
    with torch.inference_mode():
        weights = {width: torch.eye(width) * 1.01 for width in (32, 64, 128)}
    model, positive = sd15.clone(), small.annotated(sd15)
    model.set_model_attn2_patch(lambda q, k, v, extra: (torch.nn.functional.linear(q, weights[q.shape[-1]]), k, v))
    shares = {}
    for checkpointing in ("off", "on"):
        picture, trace = guided(model, vae, positive, settings={"checkpointing": checkpointing})
        assert_guided(trace)
        shares[checkpointing] = [step.share for step in trace.steps]
    assert shares["on"] == pytest.approx(shares["off"], rel=1e-3)


@torch.library.custom_op("omniportrait_tests::attention", mutates_args=())
def attention_without_a_way_back(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    return comfy.ldm.modules.attention.attention_pytorch(q, k, v, heads).contiguous()


@pytest.mark.parametrize("guided_pass", ["full", "shared"])
def test_a_patch_that_calls_an_attention_without_a_way_back(sd15, vae, guided_pass):
    """As ComfyUI's own is under --use-flash-attention."""
    model = sd15.clone()
    model.set_model_attn1_replace(
        lambda q, k, v, extra: attention_without_a_way_back(q, k, v, extra["n_heads"]), "input", 1
    )
    with pytest.raises(ValueError, match="another node's attention patch has none .* without --use-flash-attention"):
        guided(model, vae, small.annotated(model), settings={"guided_pass": guided_pass})


def test_offloaded_weights_end_their_cast_with_a_copy(sd15):
    """Newer cores cast them into one reused buffer; weights that are where the pass computes are left alone."""
    base = sd15.model
    with torch.inference_mode(False):
        here, elsewhere = small.twin(sd15).net, small.twin(sd15, "meta").net
    for name, loaded in base.diffusion_model.named_modules():
        if getattr(loaded, "weight", None) is None:
            continue
        assert here.get_submodule(name).weight_function == loaded.weight_function == []
        assert elsewhere.get_submodule(name).weight_function == [torch.clone]
        assert elsewhere.get_submodule(name).bias_function == [torch.clone]


def test_attention_patches_on_keys_and_output(sd15, vae):
    """The list kind of patches: other packs change q, k and v before, and the result after, cross-attention."""
    model, positive = sd15.clone(), small.annotated(sd15)
    model.set_model_attn2_patch(lambda q, k, v, extra: (q * 1.1, k, v * 0.9))
    model.set_model_attn1_output_patch(lambda n, extra: n * 0.95)
    plain = small.sample(model, positive)
    picture, trace = watched(model, vae, positive)
    assert_guided(trace)
    assert_effective(picture, plain)


FREEU = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}
PATCHES = {
    "FreeU": lambda model: core(nodes_freelunch.FreeU, model=model, **FREEU)[0],
    "FreeU V2": lambda model: core(nodes_freelunch.FreeU_V2, model=model, **FREEU)[0],
    "PAG": lambda model: core(nodes_pag.PerturbedAttentionGuidance, model=model, scale=3.0)[0],
    "SAG": lambda model: core(nodes_sag.SelfAttentionGuidance, model=model, scale=0.5, blur_sigma=2.0)[0],
    "RescaleCFG": lambda model: core(nodes_model_advanced.RescaleCFG, model=model, multiplier=0.7)[0],
}


@pytest.mark.parametrize("name", PATCHES)
def test_core_patches_before_us(sd15, vae, name):
    """Also where they write in place into what the way back needs, and checkpointing would recompute from it."""
    model, positive = PATCHES[name](sd15), small.annotated(sd15)
    plain = small.sample(model, positive)
    assert not torch.allclose(plain, small.sample(sd15, positive), rtol=1e-3, atol=1e-3)
    picture, trace = watched(model, vae, positive)
    assert_guided(trace)
    assert_effective(picture, plain)
    assert_checkpointing_keeps_the_gradient(model, vae, positive)
    assert torch.equal(small.sample(model, positive), plain)


def stretched(h):
    """FreeU's way: half of the channels grow with the mean of all."""
    half = h.shape[1] // 2
    return torch.cat([h[:, :half] * (1 + 0.5 * h.mean(dim=1, keepdim=True).tanh()), h[:, half:]], dim=1)


def stretched_in_place(h):
    half = h.shape[1] // 2
    h[:, :half] = h[:, :half] * (1 + 0.5 * h.mean(dim=1, keepdim=True).tanh())
    return h


@in_turn(
    place=["input_block_patch", "output_block_patch", "middle_patch", "attn2_output_patch"], checkpointing=["off", "on"]
)
def test_a_patch_that_writes_in_place_has_the_gradient_of_one_that_does_not(sd15, vae, place, checkpointing):
    """Between blocks and inside of those that checkpointing computes again. Four times the same step, for memory that
    is used again and again has once given another tensor back."""

    def patched(stretch):
        def patch(h, *rest):
            return (stretch(h), rest[0]) if place == "output_block_patch" else stretch(h)

        model = sd15.clone()
        model.set_model_patch(patch, place)
        return model

    positive, loud = small.annotated(sd15), {"clip": 0.0, "gain": 1e6, "checkpointing": checkpointing}
    expected, trace = change(patched(stretched), vae, positive, loud)
    assert trace.steps and not trace.skipped, trace.summary()
    scale = float(expected.abs().max())
    assert not torch.allclose(change(sd15, vae, positive, loud)[0], expected, rtol=1e-2, atol=1e-2 * scale)
    model = patched(stretched_in_place)
    for _ in range(4):
        found, trace = change(model, vae, positive, loud)
        assert trace.steps and not trace.skipped, trace.summary()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * scale)


def test_sharing_steps_back_where_a_patch_writes_in_place(sd15, vae):
    """Two conditionings with people: what ComfyUI's own call ran for the second is of no use either."""
    model, positive = PATCHES["FreeU V2"](sd15), [*small.annotated(sd15), *small.annotated(sd15, seed=4)]
    options = {"steps": 5, "scheduler": "karras"}
    whole, _ = guided(model, vae, positive, **options)
    shared, trace = guided(model, vae, positive, settings={"guided_pass": "shared"}, **options)
    assert_guided(trace)
    torch.testing.assert_close(shared, whole, rtol=0, atol=2e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("name", PATCHES)
def test_core_patches_after_us(sd15, vae, name):
    """The order of the nodes on the model does not matter."""
    positive = small.annotated(sd15)
    before, _ = guided(PATCHES[name](sd15), vae, positive)
    patched, traces = guide(sd15, vae)
    after = small.sample(PATCHES[name](patched), positive)
    assert_guided(traces[0])
    assert torch.equal(before, after)


@pytest.mark.parametrize("guided_pass", ["full", "shared"])
def test_attention_without_a_backward(sd15, vae, guided_pass):
    """SageAttention and its kind return tensors cut off from autograd; the guided pass asks for PyTorch's instead."""
    positive, settings = small.annotated(sd15), {"guided_pass": guided_pass}
    expected, _ = guided(sd15, vae, positive, settings=settings)
    model, calls = sd15.clone(), []

    def override(function, *args, **kwargs):
        calls.append(torch.is_grad_enabled())
        return function(*args, **kwargs).detach()

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    picture, trace = guided(model, vae, positive, settings=settings)
    assert_guided(trace)
    assert calls and not any(calls)
    assert torch.equal(picture, expected)


class Sage:
    """Another pack's replacement of attention, whose kernel knows no gradient."""

    def __call__(self, q, k, v, extra_options):
        attention = comfy.ldm.modules.attention.optimized_attention  # the core's own at that block, to the bit
        return attention(q, k, v, extra_options["n_heads"], transformer_options=extra_options).detach()


AFTER_THE_EXIT = ("output", 8)


def with_sage(model, kind, place):
    model = model.clone()
    if kind == "attn2_output_patch":
        model.set_model_patch(lambda n, extra: n.detach() if extra["block"] == place else n, kind)
    else:
        model.set_model_patch_replace(Sage(), kind, *place)
    return model


@pytest.mark.parametrize(
    "kind, place, checkpointing, guided_pass",
    [
        ("attn1", ("input", 1), "off", "full"),
        ("attn1", ("input", 4), "on", "full"),  # both are recorded for the maps, at their size
        ("attn2", ("input", 1), "off", "shared"),
        ("attn2", ("output", 4), "on", "shared"),
        ("attn2_output_patch", ("middle", 0), "on", "full"),
    ],
)
def test_a_patch_that_cuts_the_gradient_is_named(sd15, vae, kind, place, checkpointing, guided_pass):
    """Half a gradient looks like one: what goes around attention still has it."""
    model, settings = with_sage(sd15, kind, place), {"guided_pass": guided_pass, "checkpointing": checkpointing}
    whose = "with_sage.*lambda" if kind == "attn2_output_patch" else "test_relatives.Sage"
    with pytest.raises(ValueError, match=f"another node's patch .*{whose}.* cuts it off.* or bypass that node"):
        guided(model, vae, small.annotated(model), settings=settings)


@in_turn(kind=["attn1", "attn2", "attn2_output_patch"], guided_pass=["full", "shared"])
def test_a_patch_that_cuts_no_gradient_of_ours(sd15, vae, kind, guided_pass):
    """After the feature block nothing is asked of it."""
    model, positive = with_sage(sd15, kind, AFTER_THE_EXIT), small.annotated(sd15)
    settings = {"guided_pass": guided_pass}
    expected, _ = guided(sd15, vae, positive, settings=settings)
    picture, trace = guided(model, vae, positive, settings=settings)
    assert_guided(trace)
    assert torch.equal(picture, expected)


@pytest.mark.parametrize("guided_pass", ["full", "shared"])
def test_attention_that_passes_on_its_values_is_no_cut(sd15, vae, guided_pass):
    """PAG's way, for the whole of a run: the gradient rightly leaves q and k out."""
    model = sd15.clone()
    for place in (("input", 4), ("middle", 0)):
        model.set_model_attn1_replace(lambda q, k, v, extra: v, *place)
    _, trace = guided(model, vae, small.annotated(model), settings={"guided_pass": guided_pass})
    assert_guided(trace)
