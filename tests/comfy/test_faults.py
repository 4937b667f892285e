"""Interrupts, NaN, empty masks and memory that runs out: never a lost picture, and nothing left on the model."""

from __future__ import annotations

import gc
import weakref

import comfy.model_management
import pytest
import torch
from omniportrait.backbone.memory import OUT_OF_MEMORY, out_of_memory
from omniportrait.backbone.private import PrivateTwin
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import assert_effective, assert_guided, footprint, guide, guided
from omniportrait.sampling import reference as features
from parameters import in_turn

INTERRUPTED = comfy.model_management.InterruptProcessingException
EACH = in_turn(family=["sd15", "sdxl"], every=[1, 2])


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING" and r.name == "omniportrait"]


def assert_unguided(picture, plain, trace, reason, caplog) -> None:
    """Bit-equal to the plain picture; every call counted under the reason and reported in one line."""
    assert torch.equal(picture, plain)
    assert trace.steps and trace.skipped == {reason: len(trace.steps)}, trace.summary()
    (line,) = warnings(caplog)
    assert f"unguided {len(trace.steps)} times because {reason}" in line


@in_turn(family=["sd15", "sdxl"], step=[2, 0])
def test_interrupt_between_steps(family, vae, step):
    """The user's cancel, as ComfyUI's progress callback raises it, before and after the first guided step."""
    positive = small.annotated(family)
    plain = small.sample(family, positive)
    expected, _ = guided(family, vae, positive)
    before = footprint(family)
    patched, traces = guide(family, vae)
    left = footprint(patched)

    def cancel(at, *_):
        if at == step:
            comfy.model_management.interrupt_current_processing(True)
        comfy.model_management.throw_exception_if_processing_interrupted()

    with pytest.raises(INTERRUPTED):
        small.sample(patched, positive, callback=cancel)
    assert len(traces) == 1 and bool(traces[0].steps) == (step == 2)
    assert footprint(family) == before and footprint(patched) == left
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    assert torch.equal(small.sample(family, positive), plain)
    assert torch.equal(small.sample(patched, positive), expected)


@in_turn(when=["forward", "backward"], checkpointing=["off", "on"])
def test_interrupt_inside_the_private_pass(sd15, vae, when, checkpointing):
    """Raised by a patch while the private pass, and only it, runs: on its way there, or by autograd on the way back."""
    armed = []

    class Tripwire(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q):
            return q.clone()

        @staticmethod
        def backward(ctx, gradient):
            if armed:
                raise INTERRUPTED()
            return gradient

    def patch(q, k, v, extra):
        if armed and when == "forward" and torch.is_grad_enabled():
            raise INTERRUPTED()
        return Tripwire.apply(q) if torch.is_grad_enabled() else q, k, v

    model, positive = sd15.clone(), small.annotated(sd15)
    model.set_model_attn2_patch(patch)
    plain = small.sample(model, positive)
    expected, trace = guided(model, vae, positive, settings={"checkpointing": checkpointing})
    assert_guided(trace)
    before = footprint(model)
    armed.append(True)
    with pytest.raises(INTERRUPTED):
        guided(model, vae, positive, settings={"checkpointing": checkpointing})
    assert torch.equal(small.sample(model, positive), plain)  # the wire is only in the private pass
    armed.clear()
    assert footprint(model) == before
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    assert torch.equal(small.sample(model, positive), plain)
    again, _ = guided(model, vae, positive, settings={"checkpointing": checkpointing})
    assert torch.equal(again, expected)


def poison(monkeypatch, value=float("nan")):
    """Reference features with one bad number, as a half-precision overflow leaves them."""
    original = features.compute

    def compute(*args):
        made = original(*args)
        spoilt = made.features.clone()
        spoilt[(0, *made.mask.nonzero()[0])] = value
        return features.ReferenceFeatures(spoilt, made.mask)

    monkeypatch.setattr(features, "compute", compute)


@in_turn(family=["sd15", "sdxl"], every=[1, 2], value=[float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite(family, vae, monkeypatch, caplog, value, every):
    poison(monkeypatch, value)
    positive = small.annotated(family)
    plain = small.sample(family, positive)
    picture, trace = guided(family, vae, positive, settings={"every": every})
    assert_unguided(picture, plain, trace, "the gradient was not finite", caplog)


def test_a_model_whose_backward_is_not_finite_for_one_picture(sd15, vae, caplog):
    """Of a batch of two, the other picture is guided as ever."""
    broken = []

    class Break(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q):
            return q.clone()

        @staticmethod
        def backward(ctx, gradient):
            gradient = gradient.clone()
            gradient[broken] = float("nan")
            return gradient

    model, positive = sd15.clone(), small.annotated(sd15)
    model.set_model_attn2_patch(lambda q, k, v, extra: (Break.apply(q) if torch.is_grad_enabled() else q, k, v))
    plain = small.sample(model, positive, batch=2)
    both, trace = guided(model, vae, positive, batch=2, settings={"every": 2})
    assert_guided(trace)
    caplog.clear()
    broken.append(1)
    picture, trace = guided(model, vae, positive, batch=2, settings={"every": 2})
    assert trace.skipped == {"the gradient was not finite": len(trace.steps)}
    assert len(warnings(caplog)) == 1
    assert torch.equal(picture[1], plain[1])
    assert_effective(picture[0], plain[0])
    torch.testing.assert_close(picture[0], both[0], rtol=1e-3, atol=1e-3 * float(both.abs().max()))


@EACH
def test_an_empty_mask(family, vae, caplog, every):
    """A region that is black everywhere: nobody to be found."""
    positive = small.annotated(family, region=torch.zeros(1, 128, 128))
    plain = small.sample(family, positive)
    picture, trace = guided(family, vae, positive, settings={"every": every})
    assert_unguided(picture, plain, trace, "no face found at 'woman'", caplog)
    assert not trace.mask.any()


def test_a_mask_that_is_nearly_everything(sd15, vae, caplog):
    """A search that failed, not a face."""
    positive = small.annotated(sd15)
    plain = small.sample(sd15, positive)
    picture, trace = guided(sd15, vae, positive, settings={"every": 2, "beta": 0.0})
    assert_unguided(picture, plain, trace, "the mask of 'woman' covers over 60% of the picture", caplog)
    assert all(step.found.all() for step in trace.steps)


@in_turn(family=["sd15", "sdxl"], size=[(8, 8), (16, 16), (16, 24), (32, 32)])
def test_a_mask_of_one_cell(family, vae, size):
    """Only the map's highest point: it must reach the coarser features too, at whichever size the map was taken."""
    positive = small.annotated(family)
    plain = small.sample(family, positive, steps=2, size=size)
    picture, trace = guided(family, vae, positive, settings={"beta": 1.0}, steps=2, size=size)
    assert_guided(trace)
    assert picture.isfinite().all() and not torch.equal(picture, plain)
    assert all(step.mask.float().mean() < 0.1 for step in trace.steps)


OTHER_BACKENDS = [RuntimeError("MPS backend out of memory (MPS allocated: 18.10 GB). Tried to allocate 3.90 GB.")]
if hasattr(torch, "AcceleratorError"):
    OTHER_BACKENDS.append(torch.AcceleratorError("CUDA error: out of memory"))
WORDS = [
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "[enforce fail at alloc_cpu.cpp:114] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
    "GET was unable to find an engine to execute this computation",
    "Could not allocate tensor with 335544320 bytes. There is not enough GPU video memory available!",
    "Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
]
"""What libraries and other backends say."""


def run_out(monkeypatch, times: float, error: Exception | None = None) -> list[bool]:
    """Raise out of memory in the first `times` passes with a gradient; returns the list of attempts."""
    error = error or OUT_OF_MEMORY("Tried to allocate 3.90 GiB.")
    attempts, original = [], PrivateTwin.tap

    def features_(self, *args, **kwargs):
        if torch.is_grad_enabled():
            attempts.append(True)
            if len(attempts) <= times:
                raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(PrivateTwin, "tap", features_)
    return attempts


def opened(monkeypatch) -> list[bool]:
    """The checkpointing flag of each private pass that is made."""
    flags, original = [], PrivateTwin.__init__

    def init(self, family, device, conditions):
        flags.append(conditions.checkpointing)
        original(self, family, device, conditions)

    monkeypatch.setattr(PrivateTwin, "__init__", init)
    return flags


def test_out_of_memory_once(sdxl, vae, monkeypatch):
    """Tried again with checkpointing, which stays on for the run: the picture is that of a checkpointed one."""
    positive = small.annotated(sdxl)
    expected, _ = guided(sdxl, vae, positive, settings={"checkpointing": "on"})
    before = footprint(sdxl)
    attempts, flags = run_out(monkeypatch, 1), opened(monkeypatch)
    picture, trace = guided(sdxl, vae, positive)
    assert_guided(trace)
    assert flags == [False, True] and len(attempts) == len(trace.steps) + 1
    assert torch.equal(picture, expected)
    assert footprint(sdxl) == before


@in_turn(error=OTHER_BACKENDS, guided_pass=["full", "shared"])
def test_out_of_memory_in_another_backends_words(sd15, vae, monkeypatch, error, guided_pass):
    attempts = run_out(monkeypatch, 1, error)
    _, trace = guided(sd15, vae, small.annotated(sd15), settings={"guided_pass": guided_pass})
    assert_guided(trace)
    assert len(attempts) == len(trace.steps) + 1


@pytest.mark.parametrize("words", WORDS, ids=lambda words: words.split()[-1])
def test_the_words_of_memory_that_ran_out(words):
    assert out_of_memory(RuntimeError(words))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied (77x768 and 2048x320)"))


def test_a_cpus_memory_that_runs_out():
    """As PyTorch itself says it."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    assert out_of_memory(error.value)


@EACH
def test_out_of_memory_always(family, vae, monkeypatch, caplog, every):
    """The picture is finished without guidance, and the log says so."""
    positive = small.annotated(family)
    plain = small.sample(family, positive)
    attempts = run_out(monkeypatch, float("inf"))
    picture, trace = guided(family, vae, positive, settings={"every": every})
    assert len(attempts) == 2 * len(trace.steps)
    assert_unguided(picture, plain, trace, "memory ran out, even with checkpointing", caplog)


def test_other_errors_are_not_swallowed(sd15, vae, monkeypatch):
    """Only memory is forgiven: a mistake must be seen."""
    positive = small.annotated(sd15)
    plain = small.sample(sd15, positive)

    def features_(self, *args, **kwargs):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(PrivateTwin, "tap", features_)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        guided(sd15, vae, positive)
    assert torch.equal(small.sample(sd15, positive), plain)


def test_a_failed_pass_is_let_go_before_the_next(sd15, vae, monkeypatch):
    """Memory runs out on the way back, when all activations are there: none of them is left when it is tried again."""
    graphs, left = [], []

    class Mark(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q):
            graphs.append(weakref.ref(ctx))
            return q.clone()

        @staticmethod
        def backward(ctx, gradient):
            if not left:
                left.append(None)
                raise OUT_OF_MEMORY("Tried to allocate 3.90 GiB.")
            return gradient

    model, original = sd15.clone(), PrivateTwin.tap

    def tap(*args, **kwargs):
        if left and torch.is_grad_enabled():
            left.append(sum(graph() is not None for graph in graphs))
        return original(*args, **kwargs)

    model.set_model_attn2_patch(lambda q, k, v, extra: (Mark.apply(q) if torch.is_grad_enabled() else q, k, v))
    monkeypatch.setattr(PrivateTwin, "tap", tap)
    gc.disable()
    try:
        _, trace = guided(model, vae, small.annotated(model), settings={"checkpointing": "off"})
    finally:
        gc.enable()
    assert_guided(trace)
    assert graphs and left[1] == 0
