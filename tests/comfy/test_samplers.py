"""Every sampler that people use, in both families: all of the window is guided, and the picture is not plain.

tests/lab/test_matrix.py has each of them too, over all schedulers and workflows: off is off, and what comes out is the
same again.
"""

from __future__ import annotations

import comfy.samplers
import pytest
import torch
from omniportrait.backbone.clock import stable_diffusion_sigmas
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import assert_effective, assert_guided, guided
from parameters import in_turn

SAMPLERS = ("euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "heun", "ddim", "lcm", "uni_pc")
SCHEDULERS = ("normal", "karras", "sgm_uniform")


def check(model, vae, **options):
    positive = small.annotated(model)
    plain = small.sample(model, positive, **options)
    picture, trace = guided(model, vae, positive, **options)
    assert_effective(picture, plain)
    assert_guided(trace)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sd15(sd15, vae, sampler):
    check(sd15, vae, sampler=sampler)


@pytest.mark.parametrize(
    "sampler, scheduler", [("euler_ancestral", "karras"), ("dpmpp_2m", "sgm_uniform"), ("heun", "normal")]
)
def test_sdxl(sdxl, vae, sampler, scheduler):
    check(sdxl, vae, sampler=sampler, scheduler=scheduler)


@in_turn(scheduler=SCHEDULERS, u=[0.3, 0.6, 1.0])
def test_guided_calls_are_those_at_or_below_u(sd15, vae, scheduler, u):
    """Eq. 11's window, counted independently: sigma of the call against that of t = 1000 u in the paper's schedule."""
    steps = 5
    sigmas = comfy.samplers.calculate_sigmas(sd15.get_model_object("model_sampling"), scheduler, steps)[:-1]
    edge = float("inf") if u == 1.0 else float(stable_diffusion_sigmas()[int(1000 * u)])
    expected = [float(s) for s in sigmas if float(s) <= edge * 1.0001]
    _, trace = guided(sd15, vae, small.annotated(sd15), scheduler=scheduler, steps=steps, settings={"u": u})
    assert 0 < len(expected) <= steps
    assert [step.sigma for step in trace.steps] == pytest.approx(expected)


def test_two_calls_a_step_are_gated_by_sigma(sd15, vae):
    """Heun asks twice a step, at different sigmas: each call is guided by its own."""
    _, trace = guided(sd15, vae, small.annotated(sd15), sampler="heun", scheduler="karras", steps=4)
    assert_guided(trace)
    sigmas = [step.sigma for step in trace.steps]
    assert all(sigma <= 2.2851 for sigma in sigmas)
    assert len(set(sigmas)) < len(sigmas)  # a step's second call is the next step's first


def test_strength_scales_the_change_of_a_single_step(sd15, vae):
    """One step from the window's edge to 0: the result is the denoised picture, so the change is linear in strength."""
    positive = small.annotated(sd15)
    sigmas = {"sigmas": torch.tensor([1.5, 0.0]), "steps": 1}
    plain = small.sample(sd15, positive, **sigmas)
    changes = []
    for strength in (0.5, 1.0, 2.0):
        picture, trace = guided(sd15, vae, positive, settings={"strength": strength}, **sigmas)
        assert_guided(trace, calls=1)
        changes.append(picture - plain)
    scale = float(changes[1].abs().max())
    assert scale > 1e-3
    torch.testing.assert_close(changes[0] * 2, changes[1], rtol=1e-3, atol=2e-3 * scale)
    torch.testing.assert_close(changes[2], changes[1] * 2, rtol=1e-3, atol=2e-3 * scale)
