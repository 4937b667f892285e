"""start_percent, end_percent and curve where a real sampler runs, and RB-Guidance Report behind one."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from omniportrait.backbone.clock import Clock
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import change, core, guided
from omniportrait.nodes.rb_guidance import RBGuidance
from omniportrait.nodes.rb_guidance_report import RBGuidanceReport
from omniportrait.sampling.runs import KEPT, Runs, runs_of
from omniportrait.sampling.session import Session

import nodes

SAMPLING = {"steps": 4, "cfg": 7.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
GUIDANCE = {"strength": 1.0, "mode": "calibrated", "feature_block": -1, "every": 1}


def sample(model, positive, seed=3, **changed) -> dict:
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(4))
    inputs = {"positive": positive, "negative": small.conditioning(model, 2), "latent_image": {"samples": noise}}
    return core(nodes.KSampler, model=model, seed=seed, **SAMPLING | inputs | changed)[0]


def report(model, latent) -> tuple:
    same, mask, plot, text = core(RBGuidanceReport, model=model, latent=latent)
    assert same is latent and plot.shape[-1] == 3
    return mask, plot, text


@pytest.mark.parametrize(("start", "end"), [(0.55, 1.0), (0.0, 0.8)])
def test_guided_where_both_the_window_and_u_hold(sd15, vae, start, end):
    """Against ComfyUI's own percents, at sigmas on both sides of each border."""
    sampling = sd15.get_model_object("model_sampling")
    sigmas = [float(sampling.percent_to_sigma(percent)) for percent in (0.3, 0.5, 0.6, 0.75, 0.85)]
    window = {"u": 0.6, "start_percent": start, "end_percent": end}
    given = {"sigmas": torch.tensor([*sigmas, 0.0]), "steps": len(sigmas)}
    _, trace = guided(sd15, vae, small.annotated(sd15), settings=window, **given)
    low, high = (float(sampling.percent_to_sigma(percent)) for percent in (end, max(start, 0.4)))  # u is the last 0.6
    expected = [sigma for sigma in sigmas if low <= sigma <= high]
    assert [step.sigma for step in trace.steps] == pytest.approx(expected) and len(expected) == 3


@pytest.mark.parametrize(("curve", "rising"), [("fade in", True), ("fade out", False)])
def test_a_curve_weights_the_guided_step(sd15, vae, curve, rising):
    """One step at sigma 1.5: its change is the constant one's times the place of its timestep between 600 and the
    end."""
    positive = small.annotated(sd15)
    whole, _ = change(sd15, vae, positive)
    part, _ = change(sd15, vae, positive, settings={"curve": curve, "end_percent": 0.9})
    sampling = sd15.get_model_object("model_sampling")
    clock = Clock(sampling)
    last = clock.t(float(sampling.percent_to_sigma(0.9)))
    passed = (600 - clock.t(1.5)) / (600 - last)
    torch.testing.assert_close(part, whole * (passed if rising else 1 - passed), rtol=1e-3, atol=1e-4)


def test_a_report_behind_any_sampler(sd15, vae):
    """Each of two runs of one model gets its own; a model patched further reports, too."""
    (model,) = core(RBGuidance, model=sd15, vae=vae, **GUIDANCE)
    (further,) = core(nodes_of_core("FreeU"), model=model, b1=1.0, b2=1.0, s1=1.0, s2=1.0)
    positive = small.annotated(sd15)
    first, second = sample(model, positive), sample(further, positive, steps=2, denoise=0.4)
    for latent, count in ((first, 2), (second, 2), (first, 2)):
        mask, _, text = report(further, latent)
        assert text.startswith(f"RB-Guidance: {count} of {count} calls guided"), text
        assert mask.shape == (1, 128, 128) and 0 < mask.sum() < mask.numel()
    assert not torch.equal(report(model, first)[1], report(model, second)[1])
    rounded = {"samples": first["samples"].half()}
    assert torch.equal(report(model, rounded)[1], report(model, first)[1])
    larger = {"samples": torch.nn.functional.interpolate(first["samples"], scale_factor=2)}
    assert torch.equal(report(model, larger)[1], report(model, second)[1])  # unknown: the last run


def nodes_of_core(name: str) -> type:
    from comfy_extras import nodes_freelunch

    return getattr(nodes_freelunch, name)


def test_a_report_without_a_run(sd15, vae):
    latent = {"samples": torch.zeros(1, 4, 16, 16)}
    assert "off" in report(sd15, latent)[2]
    (model,) = core(RBGuidance, model=sd15, vae=vae, **GUIDANCE)
    mask, _, text = report(model, latent)
    assert "no sampler has used this model yet" in text and not mask.any()
    (off,) = core(RBGuidance, model=model, vae=vae, **GUIDANCE | {"strength": 0.0})
    assert runs_of(off) is None and "off" in report(off, latent)[2]


def sessions() -> set[int]:
    gc.collect()
    return {id(each) for each in gc.get_objects() if isinstance(each, Session)}


def test_what_is_kept_is_small_and_goes_with_the_model(sd15, vae):
    (model,) = core(RBGuidance, model=sd15, vae=vae, **GUIDANCE)
    positive, before = small.annotated(sd15), sessions()  # a test that failed holds its own
    sample(model, positive)
    runs = runs_of(model)
    assert sessions() <= before
    gone = weakref.ref(runs)
    del runs, model
    gc.collect()
    assert gone() is None


def test_an_unknown_choice_is_named():
    from omniportrait.guidance.omniportrait.settings import Settings

    with pytest.raises(ValueError, match="no curve 'linear'; choose constant or fade in or fade out"):
        Settings(curve="linear")


def test_the_newest_of_equal_results_is_meant():
    """The same latent sampled twice, with other settings in between, say; and no more than KEPT are remembered."""
    runs, latent = Runs(), torch.ones(1, 4, 2, 2)
    for number in range(KEPT + 2):
        runs.add(number, latent)
    assert runs.of(latent) == KEPT + 1 and len(runs) == KEPT
