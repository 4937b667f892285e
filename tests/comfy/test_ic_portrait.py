"""IC-Portrait on the real UNet: against the same call made by hand, and against what must not change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ic_files import face, written
from omniportrait.guidance.ic_portrait.settings import Settings
from omniportrait.lab.testbed import small, texts
from omniportrait.lab.testbed.guiding import ONE_CALL, assert_effective, core, footprint
from omniportrait.models.ic.handle import load_handle
from omniportrait.models.ic.nets import Shape
from omniportrait.sampling import ic_passes, reference_attention
from omniportrait.sampling.ic_conditioning import fitting
from omniportrait.sampling.ic_portrait import patch
from omniportrait.sampling.ic_run import encoded, sized

SIDE = 128


@pytest.fixture
def handle(sd15, tmp_path):
    return load_handle(str(written(tmp_path / "ic.safetensors", Shape.of(sd15.model.model_config.unet_config))))


@pytest.fixture
def painting(vae, handle):
    """painting(model, ...) -> the patched model, and the runs it makes."""
    runs = []

    def of(model, profile=None, style=None, own=None, **settings):
        with torch.inference_mode():
            given = profile or face(1), style or face(2)
            return patch(model, vae, own or handle, *given, Settings(**settings), runs.append)

    of.runs = runs
    return of


def sample(model, positive, **options) -> torch.Tensor:
    """Two steps, where nothing else is asked for."""
    return small.sample(model, positive, **{"steps": 2} | options)


def by_hand(model, vae, handle, profile, style, settings, noise, sigma, positive) -> torch.Tensor:
    """The denoised picture of one call, for two faces whose landmarks are the same places: warping then changes
    nothing."""
    base, shape = model.model, handle.header.shape
    random = torch.Generator().manual_seed(settings.seed)
    with torch.inference_mode():
        shown = torch.rand(SIDE, SIDE, generator=random) < settings.light
        pictures = sized(profile.crop, SIDE), sized(style.crop, SIDE) * shown
        z_p, z_m = (base.process_latent_in(encoded(vae, each, 4)).float() for each in pictures)
        n_p = torch.randn(z_p.shape, generator=random)
        x = noise * sigma  # of an empty latent
        both = torch.cat([z_p + sigma * n_p, x], -1) / (1 + sigma**2) ** 0.5
        time = base.model_sampling.timestep(torch.tensor([sigma])).float()
        context = positive[0][0]
        net = handle.appearance.model
        features = net(torch.cat([z_p, z_m], -1), time, context, {})
        added, last = [], len(shape.widths) - 1
        for level, each in enumerate(features):
            profile_half, lit_half = each[..., : each.shape[-1] // 2], each[..., each.shape[-1] // 2 :]
            share = (1 - level / last) * settings.alpha + settings.beta
            aggregate = torch.cat([profile_half, lit_half + share * profile_half], -1)
            added.append(settings.strength * net.zero[level](aggregate))
        control = {"input": [], "middle": [added[-1]], "output": added[:-1]}
        out = base.diffusion_model(both, time, context=context, control=control, transformer_options={})
        return base.model_sampling.calculate_denoised(torch.tensor([sigma]), out[..., 16:].float(), x)


@pytest.mark.parametrize("v_prediction", [False, True])
def test_it_is_the_wide_call_made_by_hand(vae, handle, painting, v_prediction):
    model = small.sd15(v_prediction=v_prediction)
    positive, noise = (
        small.conditioning(model, 1),
        torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4)),
    )
    settings = dict(strength=0.7, light=0.3, alpha=0.5, beta=0.4, seed=9)
    expected = by_hand(model, vae, handle, face(1), face(2), Settings(**settings), noise, 1.5, positive)
    found = sample(painting(model, **settings), positive, noise=noise, cfg=1.0, **ONE_CALL)
    plain = sample(model, positive, noise=noise, cfg=1.0, **ONE_CALL)
    expected = model.model.process_latent_out(expected)
    change = float((expected - plain).abs().max())
    assert change > 1e-3 * float(plain.abs().max())
    assert float((found - expected).abs().max()) < 1e-3 * change


def test_strength_zero_is_the_model_to_the_bit_and_a_run_leaves_nothing(sd15, handle, painting):
    positive = small.conditioning(sd15, 1)
    plain, before = sample(sd15, positive), footprint(sd15)
    nets = footprint(handle.appearance)["parameters"]
    assert torch.equal(sample(painting(sd15, strength=0.0), positive), plain)
    assert_effective(sample(painting(sd15), positive), plain)
    assert torch.equal(sample(sd15, positive), plain) and footprint(sd15) == before
    assert footprint(handle.appearance)["parameters"] == nets


def test_the_same_run_twice_gives_the_same_bits_and_another_profile_another_picture(sd15, painting):
    positive, model = small.conditioning(sd15, 1), painting(sd15)
    first = sample(model, positive)
    assert torch.equal(sample(model, positive), first)
    assert_effective(sample(painting(sd15, profile=face(3)), positive), first)
    second = painting(model, profile=face(3))  # the second on one model replaces the first
    assert torch.equal(sample(second, positive), sample(painting(sd15, profile=face(3)), positive))


@pytest.mark.parametrize("sampler", ["dpmpp_2m_sde", "heun", "uni_pc"])
def test_any_sampler_and_batch(sd15, painting, sampler):
    positive = small.conditioning(sd15, 1)
    plain = sample(sd15, positive, batch=2, sampler=sampler)
    assert_effective(sample(painting(sd15), positive, batch=2, sampler=sampler), plain)


def test_a_batch_is_each_picture_alone(sd15, painting):
    positive, model = small.conditioning(sd15, 1), painting(sd15)
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    both = sample(model, positive, noise=noise, batch=2)
    for number in range(2):
        alone = sample(model, positive, noise=noise[number : number + 1])
        torch.testing.assert_close(both[number : number + 1], alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max()))


def test_outside_of_the_window_nothing_changes(sd15, painting):
    positive = small.conditioning(sd15, 1)
    plain = sample(sd15, positive)
    assert torch.equal(sample(painting(sd15, start_percent=0.4, end_percent=0.45), positive), plain)


@pytest.mark.parametrize("flow", ["shared", "layer", "none", "landmarks"])
def test_the_flow_is_found_once_a_run(sd15, handle, painting, flow):
    calls = []
    hook = handle.matching.model.register_forward_hook(lambda *_: calls.append(1))
    plain = sample(sd15, small.conditioning(sd15, 1))
    try:
        assert_effective(sample(painting(sd15, flow=flow), small.conditioning(sd15, 1)), plain)
    finally:
        hook.remove()
    (run,) = painting.runs
    assert len(calls) == (flow in ("shared", "layer")) and run.calls == 2
    assert (run.flow is None) == (flow == "none") and (run.trusted is None) == (flow in ("none", "landmarks"))


def test_landmarks_move_the_profile_to_the_styles_face(sd15, painting):
    """The style's face lies 16 pixels, an eighth of the picture, to the right of the profile's."""
    sample(painting(sd15, style=face(2, shift=16.0)), small.conditioning(sd15, 1))
    flow = painting.runs[0].flow[0]
    x = (torch.arange(16) + 0.5) / 16
    torch.testing.assert_close(flow[..., 0], (x - 0.125).expand(16, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(flow[..., 1], x[:, None].expand(16, 16), atol=1e-5, rtol=0)


def test_a_controlnets_residuals_reach_the_new_half_alone(sd15, vae, handle, painting):
    """A patch that adds residuals to every narrow call, as ComfyUI hands them on: with nets that add nothing it must
    come out as residuals with zeros over the profile."""
    seen = []

    class Stub:
        """A ControlNet as calc_cond_batch asks for it."""

        def get_control(self, x, *_):
            widths = handle.header.shape.widths
            return {"output": [None] * (len(widths) - 2) + [torch.ones(1, widths[-2], 2, 2)], "middle": [], "input": []}

    def watch(executor, x, timesteps, context, y, control, *args, **kwargs):
        seen.append(control["output"][-1].clone())
        return executor(x, timesteps, context, y, control, *args, **kwargs)

    from comfy.patcher_extension import WrappersMP

    with torch.no_grad():
        for weight in handle.appearance.model.zero.parameters():
            weight.zero_()
    model = painting(sd15)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", watch)
    model.set_model_unet_function_wrapper(
        lambda apply, given: apply(given["input"], given["timestep"], **given["c"] | {"control": Stub().get_control(0)})
    )
    sample(model, small.conditioning(sd15, 1), cfg=1.0, steps=1)
    (added,) = seen
    assert added.shape[-1] == 4 and not added[..., :2].any() and bool((added[..., 2:] == 1).all())


def test_memory_is_asked_for_the_wide_picture(sd15, painting, monkeypatch):
    import comfy.sampler_helpers

    shapes, original = [], comfy.sampler_helpers.estimate_memory

    def spy(model, shape, conds):
        shapes.append(list(shape))
        return original(model, shape, conds)

    monkeypatch.setattr(comfy.sampler_helpers, "estimate_memory", spy)
    sample(painting(sd15), small.conditioning(sd15, 1), steps=1)
    assert shapes == [[1, 4, 16, 32]]


def test_refusals_are_one_sentence_that_says_what_to_do(sd15, sdxl, vae, handle, painting, tmp_path):
    import nodes

    positive = small.conditioning(sd15, 1)
    with pytest.raises(ValueError, match=r"choose the file and the checkpoint of one family\.$"):
        painting(sdxl)
    with pytest.raises(ValueError, match="no face was found in the style picture"):
        painting(sd15, style=replace(face(2), landmarks=None))
    with pytest.raises(ValueError, match="holds no VAE"), torch.inference_mode():
        patch(sd15, None, handle, face(1), face(2), Settings())
    alone = load_handle(str(written(tmp_path / "alone.safetensors", handle.header.shape, levels=0)))
    with pytest.raises(ValueError, match="alone.safetensors has no matching net"):
        painting(sd15, own=alone, flow="shared")
    cut = load_handle(str(written(tmp_path / "cut.safetensors", handle.header.shape, levels=3)))
    with pytest.raises(ValueError, match="cut.safetensors has the finer blocks .* set flow to shared or landmarks"):
        painting(sd15, own=cut, flow="layer")
    assert_effective(sample(painting(sd15, own=cut, flow="shared"), positive), sample(sd15, positive))
    assert_effective(sample(painting(sd15, own=alone), positive), sample(sd15, positive))
    for size in ((16, 24), (12, 12)):
        with pytest.raises(ValueError, match="square crop whose side is a multiple of 64 pixels"):
            sample(painting(sd15), positive, size=size)
    with pytest.raises(ValueError, match="IC-Portrait and Reference Attention cannot work on one model"):
        with torch.inference_mode():
            both = reference_attention.patch(painting(sd15), vae, reference_attention.Settings())
        sample(both, small.annotated(sd15))
    (area,) = core(nodes.ConditioningSetArea, conditioning=positive, width=64, height=128, x=0, y=0, strength=1.0)
    with pytest.raises(ValueError, match="remove area conditionings"):
        sample(painting(sd15), area)


def test_conditionings_are_those_that_the_nets_were_trained_with(handle, load):
    clip, text = texts.clip("sd15"), "a photo of a woman"
    ((plain, _),), ((empty, _),) = texts.encode(clip, text), texts.encode(clip, "")
    positive, negative = fitting(clip, handle, face(1), text, "woman")
    assert torch.equal(positive[0][0], plain) and torch.equal(negative[0][0], empty)
    pivoted, _ = fitting(clip, handle, face(1), text, "woman", load("sd15"))
    assert texts.changed_rows(pivoted[0][0], plain) == [5]
    blind = replace(handle, header=replace(handle.header, context="empty"))
    for each in fitting(clip, blind, face(1), text, "woman"):
        assert torch.equal(each[0][0], empty)
    with pytest.raises(ValueError, match='does not hold the subject "man"'):
        fitting(clip, handle, face(1), text, "man")


def test_progressive_passes_each_start_from_the_one_before(sd15, vae, handle):
    from comfy import utils

    utils.PROGRESS_BAR_ENABLED = False
    sampler = {"seed": 5, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal",
               "positive": small.conditioning(sd15, 1), "negative": small.conditioning(sd15, 2)}  # fmt: skip

    def painted(*passes):
        with torch.inference_mode():
            return ic_passes.paint(sd15, vae, handle, face(1), face(2), Settings(), passes, sampler, SIDE)

    one, two = painted(0.7), painted(0.7, 0.5)
    assert one.picture.shape == (1, SIDE, SIDE, 3) and one.passes.shape == (1, SIDE, 3 * SIDE, 3)
    assert two.passes.shape == (1, SIDE, 4 * SIDE, 3) and torch.equal(two.passes[:, :, : 3 * SIDE], one.passes)
    assert not torch.equal(two.picture, one.picture) and two.flow.shape == (1, SIDE, 4 * SIDE, 3)


def test_what_the_training_has_not_seen_is_told_once(sd15, vae, handle, caplog):
    sampler = {"seed": 5, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal",
               "positive": small.conditioning(sd15, 1), "negative": small.conditioning(sd15, 2)}  # fmt: skip
    wide = replace(face(2), face_box=(50.0, 50.0, 80.0, 82.0))  # the header says 1.7 to 2.3 sides of the face

    def told(style, **settings) -> list[str]:
        caplog.clear()
        with torch.inference_mode():
            ic_passes.paint(sd15, vae, handle, face(1), style, Settings(**settings), (0.7, 0.5), sampler, SIDE)
        return [line for line in (each.getMessage() for each in caplog.records) if "was trained with" in line]

    assert not told(face(2)) and not told(wide, strength=0.0)
    assert "light is 0.3" in " ".join(told(face(2), light=0.3))
    assert "trained with 0.8 and 0.2" in " ".join(told(face(2), alpha=0.0, beta=1.0))
    assert "flow is none" in " ".join(told(face(2), flow="none"))
    (line,) = told(wide)
    assert "the style picture's crop is 4.0 times its face" in line and "1.7 to 2.3" in line
