"""The user's cancel in every phase of a guided run: it stops at once, and the next runs are as if it had not been."""

from __future__ import annotations

import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel
import comfy.model_management
import comfy.sampler_helpers
import pytest
import small
import torch
from guiding import footprint, guide, guided
from omniportrait.guidance import features, listener, region, rows
from omniportrait.guidance.private_pass import PrivatePass
from omniportrait.guidance.trace import Trace

INTERRUPTED = comfy.model_management.InterruptProcessingException

PHASES = {
    "the reference's way through the VAE": (features, "encode_reference", 0),
    "ComfyUI's loading of the model": (comfy.sampler_helpers, "prepare_sampling", 0),
    "ComfyUI's own prediction of a guided step": (listener.Listener, "heard_call", 1),
    "making the weights' views": (PrivatePass, "__init__", 0),
    "the reference's features": (features, "compute", 0),
    "the second of the reference's passes": (PrivatePass, "features", 1),
    "the UNet's first block in the guided pass": (openaimodel, "apply_control", 50),
    "reading the attention": (rows, "install_recorders", 1),
    "finding the face in the maps": (region, "largest_component", 1),
    "writing the trace": (Trace, "summary", 0),
}
"""Where, and how many calls go well before: the flag that ComfyUI's button sets is seen there."""


@pytest.mark.parametrize("phase", PHASES)
def test_interrupt(sd15, vae, monkeypatch, phase):
    owner, name, spared = PHASES[phase]
    positive = small.annotated(sd15)
    plain = small.sample(sd15, positive, steps=3)
    expected, _ = guided(sd15, vae, positive, steps=3)
    before = footprint(sd15)
    features.forget_all()
    patched, _ = guide(sd15, vae)
    left, original, calls = footprint(patched), getattr(owner, name), []

    def pressed(*args, **kwargs):
        calls.append(name)
        if len(calls) == spared + 1:
            comfy.model_management.interrupt_current_processing(True)
            comfy.model_management.throw_exception_if_processing_interrupted()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, pressed)
    with pytest.raises(INTERRUPTED):
        small.sample(patched, positive, steps=3)
    monkeypatch.undo()
    assert len(calls) == spared + 1  # nothing went on behind the cancel
    assert footprint(sd15) == before and footprint(patched) == left
    assert "omniportrait_run" not in patched.model_options["transformer_options"]
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    assert torch.equal(small.sample(sd15, positive, steps=3), plain)
    assert torch.equal(small.sample(patched, positive, steps=3), expected)
