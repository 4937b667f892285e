"""The ways into sampling: inpainting, image to image, split runs, custom guiders, ControlNet."""

from __future__ import annotations

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.sd
import pytest
import torch
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras.nodes_perpneg import PerpNegGuider
from omniportrait.guidance.omniportrait.settings import Settings
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
from omniportrait.sampling import passes
from omniportrait.sampling import reference as features
from omniportrait.sampling.people import ByHand
from omniportrait.sampling.single_call import find_faces
from parameters import in_turn

import nodes


def start(seed: int = 4) -> torch.Tensor:
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


@in_turn(family=["sd15", "sdxl"], sampler=["euler", "dpmpp_2m_sde"])
def test_inpainting_keeps_what_is_outside(family, vae, sampler):
    """At the last step ComfyUI puts the original back outside the mask, so both pictures are exactly that there."""
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 24:104, 16:112] = 1
    latent, positive = start(), small.annotated(family)
    options = {"latent": latent, "noise_mask": mask, "sampler": sampler}
    plain = small.sample(family, positive, **options)
    picture, trace = guided(family, vae, positive, **options)
    outside = torch.nn.functional.interpolate(mask, size=(16, 16), mode="bilinear")[0, 0] == 0
    assert_guided(trace)
    assert_effective(picture, plain)
    assert torch.equal(picture[0][:, outside], plain[0][:, outside])
    torch.testing.assert_close(picture[0][:, outside], latent[0][:, outside])


@in_turn(family=["sd15", "sdxl"], denoise=[0.5, 0.2])
def test_image_to_image(family, vae, denoise):
    """denoise 0.5 starts near the window's edge, 0.2 well inside it."""
    positive = small.annotated(family)
    options = {"latent": start(), "denoise": denoise}
    plain = small.sample(family, positive, **options)
    picture, trace = guided(family, vae, positive, **options)
    assert_effective(picture, plain)
    assert_guided(trace, calls=small.STEPS if denoise == 0.2 else None)


def advanced(model, positive, latent, first, last, steps=6):
    return core(
        nodes.KSamplerAdvanced,
        model=model,
        add_noise="enable" if first == 0 else "disable",
        noise_seed=3,
        steps=steps,
        cfg=7.5,
        sampler_name="euler",
        scheduler="normal",
        positive=positive,
        negative=small.conditioning(model, 2),
        latent_image={"samples": latent},
        start_at_step=first,
        end_at_step=last,
        return_with_leftover_noise="enable" if last < steps else "disable",
    )[0]["samples"]


def test_advanced_steps_split_in_two(family, vae):
    """A plain first part and a guided second part are the guided whole, for the window begins in the second."""
    positive, empty = small.annotated(family), torch.zeros(1, 4, 16, 16)
    patched, traces = guide(family, vae)
    whole = advanced(patched, positive, empty, 0, 6)
    half = advanced(family, positive, empty, 0, 2)
    assert torch.equal(advanced(patched, positive, empty, 0, 2), half)
    split = advanced(patched, positive, half, 2, 6)
    plain = advanced(family, positive, half, 2, 6)
    all_of_it, first, second = traces
    assert_guided(all_of_it)
    assert not first.steps and not first.skipped
    assert_guided(second, calls=len(all_of_it.steps))
    assert_effective(split, plain)
    assert float((split - whole).abs().max()) < 0.05 * float((whole - plain).abs().max())


def sampled_by(guider, seed=3, steps=small.STEPS, model=None):
    noise = core(custom.RandomNoise, noise_seed=seed)[0]
    sampler = core(custom.KSamplerSelect, sampler_name="euler")[0]
    sigmas = core(custom.BasicScheduler, model=model, scheduler="normal", steps=steps, denoise=1.0)[0]
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    output = core(
        custom.SamplerCustomAdvanced, noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent
    )
    return output[0]["samples"]


def test_sampler_custom_advanced_is_ksampler(family, vae):
    positive, negative = small.annotated(family), small.conditioning(family, 2)
    patched, traces = guide(family, vae)
    guider = core(custom.CFGGuider, model=patched, positive=positive, negative=negative, cfg=7.5)[0]
    picture = sampled_by(guider, model=patched)
    assert torch.equal(picture, guided(family, vae, positive)[0])
    assert torch.equal(sampled_by(guider, model=patched), picture)  # the guider object is used again
    for trace in traces:
        assert_guided(trace)


def test_basic_guider(sd15, vae):
    """No negative, no cfg."""
    positive = small.annotated(sd15)
    patched, traces = guide(sd15, vae)
    plain = sampled_by(core(custom.BasicGuider, model=sd15, conditioning=positive)[0], model=sd15)
    picture = sampled_by(core(custom.BasicGuider, model=patched, conditioning=positive)[0], model=sd15)
    assert_effective(picture, plain)
    assert_guided(traces[0])


@in_turn(style=["regular", "nested"], place=["cond1", "cond2"])
def test_dual_cfg_guider(sd15, vae, place, style):
    """Three conditionings in a call, and index 0 of the batch is not the positive: rows are found by uuid."""
    conds = {"cond1": small.conditioning(sd15, 7), "cond2": small.conditioning(sd15, 8), place: small.annotated(sd15)}
    conds |= {"negative": small.conditioning(sd15, 2), "cfg_conds": 5.0, "cfg_cond2_negative": 5.0, "style": style}
    patched, traces = guide(sd15, vae)
    plain = sampled_by(core(custom.DualCFGGuider, model=sd15, **conds)[0], model=sd15)
    picture = sampled_by(core(custom.DualCFGGuider, model=patched, **conds)[0], model=sd15)
    assert_effective(picture, plain)
    assert_guided(traces[0])


@pytest.fixture
def controlnet():
    """ComfyUI's own ControlNet of the small SD1.5's shape, with random weights."""
    shape = {k: v for k, v in small.SD15.items() if k not in ("out_channels", "transformer_depth_output")}
    with torch.inference_mode():
        net = comfy.cldm.cldm.ControlNet(**shape, hint_channels=3, device="cpu")
        generator = torch.Generator().manual_seed(6)
        for name, p in net.named_parameters():
            p.data = torch.randn(p.shape, generator=generator) * (0.1 if p.ndim < 2 else 0.5 / p[0].numel() ** 0.5)
            if p.ndim == 1 and name.endswith("weight"):
                p.data += 1
    net.dtype = torch.float32
    return comfy.controlnet.ControlNet(net, load_device=torch.device("cpu"))


def controlled(net, positive, negative, **options):
    image = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(12))
    values = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0} | options
    values |= {"control_net": net, "image": image}
    return core(nodes.ControlNetApplyAdvanced, positive=positive, negative=negative, **values)


@pytest.mark.parametrize("batch", [1, 2])
def test_controlnet_reaches_the_private_pass(sd15, vae, controlnet, batch):
    """The features of the guided pass are those of ComfyUI's forward with its residuals, unlike those without."""
    positive, negative = controlled(controlnet, small.annotated(sd15), small.conditioning(sd15, 2))
    plain = small.sample(sd15, positive, negative=negative, batch=batch)
    assert not torch.allclose(plain, small.sample(sd15, small.annotated(sd15), batch=batch), rtol=1e-2, atol=1e-2)
    picture, trace = watched(sd15, vae, positive, negative=negative, batch=batch)
    assert_guided(trace)
    assert_effective(picture, plain)
    untapped, trace = guided(sd15, vae, positive, negative=negative, batch=batch)
    assert_guided(trace)
    assert torch.equal(untapped, picture)
    assert_checkpointing_keeps_the_gradient(sd15, vae, positive, negative=negative, batch=batch)
    assert torch.equal(small.sample(sd15, positive, negative=negative, batch=batch), plain)


def test_controlnet_on_one_of_two_entries_with_an_area(sd15, vae, controlnet):
    person, negative = controlled(controlnet, small.annotated(sd15), small.conditioning(sd15, 2))
    (person,) = core(nodes.ConditioningSetArea, conditioning=person, width=128, height=64, x=0, y=64, strength=1.0)
    positive = person + small.conditioning(sd15, 7)
    picture, trace = watched(sd15, vae, positive, negative=negative)
    assert_guided(trace)
    assert not trace.steps[0].mask[:8].any()
    assert_effective(picture, small.sample(sd15, positive, negative=negative))


def test_controlnet_that_ends_before_the_window(sd15, vae, controlnet):
    positive, negative = controlled(controlnet, small.annotated(sd15), small.conditioning(sd15, 2), end_percent=0.2)
    picture, trace = watched(sd15, vae, positive, negative=negative)
    assert_guided(trace)
    assert_effective(picture, small.sample(sd15, positive, negative=negative))


def assert_only_guided(guider, model, traces, conditioning, monkeypatch) -> None:
    """Each call of a run guides the rows of this conditioning and no others."""
    parts, original = [], passes.run_rows
    monkeypatch.setattr(passes, "run_rows", lambda *args: parts.append(args[2]) or original(*args))
    sampled_by(guider, model=model)
    assert_guided(traces[0])
    assert len(parts) == len(traces[0].steps)
    for part in parts:
        assert torch.equal(part.conditioning["c_crossattn"].cond, conditioning[0][0])


@pytest.mark.parametrize("place", ["cond1", "cond2"])
def test_dual_cfg_with_an_area(sd15, vae, monkeypatch, place):
    """ComfyUI copies the area, with uuid and record, to the other positive, whose text knows nothing of the person."""
    area = {"width": 128, "height": 64, "x": 0, "y": 64, "strength": 1.0}
    (person,) = core(nodes.ConditioningSetArea, conditioning=small.annotated(sd15), **area)
    conds = {"cond1": small.conditioning(sd15, 7), "cond2": small.conditioning(sd15, 8)}
    conds[place] = conds[place] + person
    conds |= {"negative": small.conditioning(sd15, 2), "cfg_conds": 5.0, "cfg_cond2_negative": 5.0, "style": "regular"}
    patched, traces = guide(sd15, vae)
    (guider,) = core(custom.DualCFGGuider, model=patched, **conds)
    assert_only_guided(guider, sd15, traces, person, monkeypatch)


def test_sharing_keeps_two_people_of_two_positives_apart(sd15, vae):
    """Dual CFG, one person in an area with a long prompt, which ComfyUI runs apart: the area's copy with the other
    person's text, under the same uuid, comes first."""
    size = {"width": 128, "height": 64, "x": 0, "y": 64, "strength": 1.0}
    long = [[small.conditioning(sd15, 1, tokens=385)[0][0], small.annotated(sd15)[0][1]]]
    (person,) = core(nodes.ConditioningSetArea, conditioning=long, **size)
    conds = {"cond1": small.conditioning(sd15, 7) + person, "cond2": small.annotated(sd15, seed=3)}
    conds |= {"negative": small.conditioning(sd15, 2), "cfg_conds": 5.0, "cfg_cond2_negative": 5.0, "style": "regular"}
    pictures = []
    for guided_pass in ("full", "shared"):
        patched, traces = guide(sd15, vae, guided_pass=guided_pass, checkpointing="off")
        pictures.append(sampled_by(core(custom.DualCFGGuider, model=patched, **conds)[0], model=sd15))
        assert_guided(traces[0])
    plain = sampled_by(core(custom.DualCFGGuider, model=sd15, **conds)[0], model=sd15)
    whole, shared = pictures
    assert_effective(whole, plain)
    torch.testing.assert_close(shared, whole, rtol=0, atol=2e-4 * float(whole.abs().max()))


def test_the_mask_node_takes_the_controlnet_of_old(sd15, controlnet):
    """Apply ControlNet (OLD) hangs its net on the negative too, of which the search has none of its own. It finds what
    it finds with today's node."""
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    image = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(12))
    values = {"control_net": controlnet, "image": image, "strength": 1.0}
    (old,) = core(nodes.ControlNetApply, conditioning=small.annotated(sd15), **values)
    today, _ = controlled(controlnet, small.annotated(sd15), small.conditioning(sd15, 2))
    with torch.inference_mode():
        found, expected = (find_faces(sd15, each, latent, 3, 1.5, Settings())[0] for each in (old, today))
    assert torch.equal(found, expected)


def test_perp_neg_guides_the_positive_alone(sd15, vae, monkeypatch):
    """Its empty prompt is a negative one; by hand every positive conditioning is guided."""
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:96, 32:96] = 1
    patched, traces = guide(sd15, vae, ByHand(small.face(), mask))
    positive = small.conditioning(sd15, 1)
    conds = {"positive": positive, "negative": small.conditioning(sd15, 2), "cfg": 5.0, "neg_scale": 1.0}
    (guider,) = core(PerpNegGuider, model=patched, empty_conditioning=small.conditioning(sd15, 9), **conds)
    assert_only_guided(guider, sd15, traces, positive, monkeypatch)


def test_a_persons_reference_is_read_by_the_same_weights(sd15, vae, monkeypatch):
    """One person in two conditionings with a LoRA each: two references, each as it is alone."""
    made, original = [], features.compute
    monkeypatch.setattr(features, "compute", lambda *args: made.append(original(*args)) or made[-1])
    person = small.annotated(sd15)

    def hooked(seed):
        hooks = comfy.hooks.create_hook_lora(small.lora(sd15, seed, scale=0.5), 1.0, 0.0)
        return comfy.hooks.set_hooks_for_conditioning(person, hooks)

    def run(positive):
        features.forget_all()
        made.clear()
        _, trace = guided(sd15, vae, positive)
        assert trace.steps and not trace.skipped, trace.summary()
        return [each.features for each in made]

    together, alone = run(hooked(1) + hooked(2)), run(hooked(1)) + run(hooked(2))
    assert len(together) == len(alone) == 2
    assert not torch.allclose(*alone, rtol=1e-2)
    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("hooked", ["the person", "another"])
def test_the_mask_node_reads_the_persons_own_weights(sd15, hooked):
    """A LoRA on another conditioning leaves the maps alone; one on the person's is that of a model patched with it."""
    latent, state = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4)), small.lora(sd15, scale=1.0)
    hooks = comfy.hooks.create_hook_lora(state, 1.0, 0.0)
    person, other = small.annotated(sd15), small.conditioning(sd15, 7)
    patched = comfy.sd.load_lora_for_models(sd15, None, state, 1.0, 0.0)[0]
    positive = {
        "the person": comfy.hooks.set_hooks_for_conditioning(person, hooks) + other,
        "another": person + comfy.hooks.set_hooks_for_conditioning(other, hooks),
    }[hooked]
    with torch.inference_mode():
        found, _ = find_faces(sd15, positive, latent, 3, 1.5, Settings())
        own, _ = find_faces(patched if hooked == "the person" else sd15, person, latent, 3, 1.5, Settings())
        stranger, _ = find_faces(sd15 if hooked == "the person" else patched, person, latent, 3, 1.5, Settings())
    torch.testing.assert_close(found, own, rtol=0, atol=1e-3)
    assert (stranger - own).abs().max() > 0.1


def test_the_picture_may_look_at_more_than_itself(sd15, vae):
    """Reference-only and StyleAligned add keys after the picture's own. Twice the same leaves attention as it is, and
    so the guidance."""
    doubled = sd15.clone()
    doubled.set_model_attn1_patch(lambda q, k, v, _: (q, torch.cat([k, k], 1), torch.cat([v, v], 1)))
    expected, _ = change(sd15, vae, small.annotated(sd15))
    found, trace = change(doubled, vae, small.annotated(sd15))
    assert_guided(trace, calls=1)
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2 * scale)


def test_keys_that_are_fewer_than_the_points_are_refused(sd15, vae):
    """Which points they belong to is not known (ToDo)."""
    thinned = sd15.clone()
    thinned.set_model_attn1_patch(lambda q, k, v, _: (q, k[:, ::4], v[:, ::4]))
    with pytest.raises(ValueError, match="merges or drops their tokens; bypass that node"):
        guided(thinned, vae, small.annotated(sd15))
