"""The user's cancel in every phase of a guided run: it stops at once, and the next runs are as if it had not been."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import comfy.ldm.modules.diffusionmodules.openaimodel as openaimodel
import comfy.model_management
import comfy.sampler_helpers
import pytest
import torch
from omniportrait.backbone import checkpointing as recompute
from omniportrait.backbone import private
from omniportrait.backbone.memory import OUT_OF_MEMORY
from omniportrait.backbone.private import PrivateTwin
from omniportrait.guidance.omniportrait import guide as guide_module
from omniportrait.guidance.omniportrait import mask as mask_module
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import BETA, assert_effective, footprint, guide, guided
from omniportrait.nodes.face_mask_from_attention import FaceMaskFromAttention
from omniportrait.sampling import passes, recorder, rows, shared_call, single_call
from omniportrait.sampling import reference as features
from omniportrait.sampling.trace import Trace

INTERRUPTED = comfy.model_management.InterruptProcessingException

Counts = Callable[..., bool]
"""Asked with a call's arguments whether that call is in the phase."""


def always(monkeypatch) -> Counts:
    return lambda *_, **__: True


def after(owner: object, name: str) -> Callable[[pytest.MonkeyPatch], Counts]:
    """Only what is called once `owner.name` has been."""

    def install(monkeypatch) -> Counts:
        original, been = getattr(owner, name), []

        def passed(*args, **kwargs):
            been.append(True)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, passed)
        return lambda *_, **__: bool(been)

    return install


def held(monkeypatch) -> Counts:
    """A gradient (the first argument) that is the last call's, bit for bit: it was not made anew."""
    last = [torch.zeros(0)]

    def counts(gradient, *_) -> bool:
        last.append(gradient.clone())
        return torch.equal(*last[-2:])

    return counts


def with_gradient_again(monkeypatch) -> Counts:
    """Only what is called with a gradient after the first pass with one has run out of memory at its very end."""
    original, failed = PrivateTwin.tap, []

    def runs_out(*args):
        made = original(*args)
        if torch.is_grad_enabled() and not failed:
            failed.append(True)
            raise OUT_OF_MEMORY("Tried to allocate 3.90 GiB.")
        return made

    monkeypatch.setattr(PrivateTwin, "tap", runs_out)
    return lambda *_, **__: bool(failed) and torch.is_grad_enabled()


@dataclass(frozen=True)
class Phase:
    """The button is pressed when `owner.name` is called; `spared` calls in the phase go well before."""

    owner: object
    name: str
    spared: int = 0
    when: Callable[[pytest.MonkeyPatch], Counts] = always
    settings: dict = field(default_factory=dict)


UNET = openaimodel, "apply_control"
"""What ComfyUI calls in every block of a UNet, whichever pass runs it."""
GUIDED_ROWS = after(passes, "run_rows")

PHASES = {
    "the reference's way through the VAE": Phase(features, "encode_reference"),
    "ComfyUI's loading of the model": Phase(comfy.sampler_helpers, "prepare_sampling"),
    "ComfyUI's own prediction of a guided step": Phase(*UNET, when=after(recorder.Recorder, "recording")),
    "making the weights' views": Phase(PrivateTwin, "__init__"),
    "the reference's features": Phase(features, "compute"),
    "the UNet's first block in the reference's pass": Phase(*UNET, when=after(features, "compute")),
    "the second of the reference's passes": Phase(PrivateTwin, "tap", 1, after(features, "compute")),
    "the UNet's first block in the guided pass": Phase(*UNET, when=GUIDED_ROWS),
    "a later block of the guided pass": Phase(*UNET, 5, GUIDED_ROWS),
    "reading the attention": Phase(rows, "record_attention"),
    "finding the face in the maps": Phase(mask_module, "largest_component", 1),
    "computing again on the way back": Phase(recompute.Recomputed, "unpack", settings={"checkpointing": "on"}),
    "a held step": Phase(guide_module, "limit", when=held, settings={"every": 2}),
    "ComfyUI's own prediction of a held step": Phase(*UNET, when=after(guide_module, "limit"), settings={"every": 2}),
    "the retry after out of memory": Phase(*UNET, when=with_gradient_again),
    "the shared call, with a gradient": Phase(*UNET, when=GUIDED_ROWS, settings={"guided_pass": "shared"}),
    "the shared call, after the features": Phase(
        *UNET, when=after(private._Tap, "forward"), settings={"guided_pass": "shared"}
    ),
    "the shared call's other rows": Phase(
        *UNET, when=after(shared_call, "split_call"), settings={"guided_pass": "shared"}
    ),
    "writing the trace": Phase(Trace, "summary"),
}
FACE_SEARCH = {
    "ComfyUI's loading of the model": Phase(comfy.sampler_helpers, "prepare_sampling"),
    "ComfyUI's own prediction": Phase(recorder.Recorder, "record_call"),
    "making the weights' views": Phase(PrivateTwin, "__init__"),
    "the UNet's first block in our pass": Phase(*UNET, when=after(single_call, "run_rows")),
    "finding the face in the maps": Phase(mask_module, "largest_component"),
}


def interrupt(monkeypatch, phase: Phase, run: Callable[[], object]) -> None:
    """Press the button in this phase of `run`, which must end there: nothing goes on behind the cancel."""
    counts = phase.when(monkeypatch)
    original, calls, late = getattr(phase.owner, phase.name), [], []

    def pressed(*args, **kwargs):
        if len(calls) > phase.spared:
            late.append(phase.name)
        elif counts(*args, **kwargs):
            calls.append(phase.name)
            if len(calls) > phase.spared:
                comfy.model_management.interrupt_current_processing(True)
                comfy.model_management.throw_exception_if_processing_interrupted()
        return original(*args, **kwargs)

    monkeypatch.setattr(phase.owner, phase.name, pressed)
    with pytest.raises(INTERRUPTED):
        run()
    monkeypatch.undo()
    assert len(calls) == phase.spared + 1 and not late
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


@pytest.fixture(scope="module")
def uninterrupted(vae) -> Callable[[dict], torch.Tensor]:
    """The guided picture with these settings, made once, on a model that saw no interrupt."""
    made = {}

    def picture(settings: dict) -> torch.Tensor:
        key = tuple(settings.items())
        if key not in made:
            model = small.sd15()
            made[key], _ = guided(model, vae, small.annotated(model), steps=3, settings=settings)
        return made[key]

    return picture


@pytest.mark.parametrize("name", PHASES)
def test_interrupt(sd15, vae, monkeypatch, uninterrupted, name):
    phase = PHASES[name]
    positive = small.annotated(sd15)
    expected, plain = uninterrupted(phase.settings), small.sample(sd15, positive, steps=3)
    assert_effective(expected, plain)
    before = footprint(sd15)
    features.forget_all()  # so that the phases of the reference happen
    patched, _ = guide(sd15, vae, **phase.settings)
    left = footprint(patched)
    interrupt(monkeypatch, phase, lambda: small.sample(patched, positive, steps=3))
    assert footprint(sd15) == before and footprint(patched) == left
    assert "omniportrait_session" not in patched.model_options["transformer_options"]
    assert torch.equal(small.sample(sd15, positive, steps=3), plain)
    assert torch.equal(small.sample(patched, positive, steps=3), expected)


def look(model) -> list[torch.Tensor]:
    """Face Mask From Attention at its own inputs' names: the mask and the heat map."""
    with torch.inference_mode():
        latent = {"samples": torch.zeros(1, 4, 16, 16)}
        region_inputs = dict(gamma=3, alpha=2.0, beta=BETA, refinement="outer")
        return list(
            FaceMaskFromAttention.execute(
                model, small.annotated(model), latent, seed=3, percent=0.5, person=0, sigma=0.0, **region_inputs
            ).result
        )


@pytest.mark.parametrize("name", FACE_SEARCH)
def test_interrupt_of_the_face_mask_node(sd15, monkeypatch, name):
    plain = small.sample(sd15, small.annotated(sd15), steps=1)
    expected = look(sd15)
    assert 0 < expected[0].mean() < 1
    before = footprint(sd15)
    interrupt(monkeypatch, FACE_SEARCH[name], lambda: look(sd15))
    assert footprint(sd15) == before
    assert "omniportrait_session" not in sd15.model_options["transformer_options"]
    assert all(map(torch.equal, look(sd15), expected))
    assert torch.equal(small.sample(sd15, small.annotated(sd15), steps=1), plain)
