"""Nothing of a guided run outlives it. On a GPU a view of a weight keeps the whole weight's memory, so what Python's
garbage collector would find some minutes later is a model that cannot be unloaded. It is switched off here."""

from __future__ import annotations

import gc
import weakref

import comfy.hooks
import comfy.model_management
import pytest
import torch
from omniportrait.backbone.memory import OUT_OF_MEMORY
from omniportrait.backbone.private import PrivateTwin
from omniportrait.guidance.omniportrait.settings import Settings
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import BETA, assert_guided, guided
from omniportrait.sampling import passes
from omniportrait.sampling.session import Session
from omniportrait.sampling.single_call import FaceSearch, find_faces
from parameters import all_pairs, in_turn

INTERRUPTED = comfy.model_management.InterruptProcessingException


@pytest.fixture(autouse=True)
def uncollected():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def left(monkeypatch):
    """Names of what is still there of the runs and of the private passes' weights that were made."""
    made: list[tuple[str, weakref.ref]] = []
    build = PrivateTwin.__init__

    def remember(kind):
        start = kind.__init__

        def init(self, *args):
            made.append((kind.__name__, weakref.ref(self)))
            start(self, *args)

        monkeypatch.setattr(kind, "__init__", init)

    def init_pass(self, *args, **kwargs):
        build(self, *args, **kwargs)
        made.extend((name, weakref.ref(p)) for name, p in self.net.named_parameters())

    remember(Session)
    remember(FaceSearch)
    monkeypatch.setattr(PrivateTwin, "__init__", init_pass)

    def names() -> list[str]:
        assert len(made) > 100 and {"Session", "FaceSearch"} & {name for name, _ in made}  # and the weights of a pass
        return [name for name, reference in made if reference() is not None]

    return names


@in_turn(guided_pass=["full", "shared"], checkpointing=["on", "off"])
def test_a_finished_run(sd15, vae, left, guided_pass, checkpointing):
    settings = {"guided_pass": guided_pass, "checkpointing": checkpointing}
    _, trace = guided(sd15, vae, small.annotated(sd15), settings=settings)
    assert_guided(trace)
    assert left() == []


def test_a_run_whose_passes_are_replaced(sd15, vae, left):
    """A LoRA hook on the person makes a pass a step."""
    hooks = comfy.hooks.create_hook_lora(small.lora(sd15), 1.0, 0.0)
    positive = comfy.hooks.set_hooks_for_conditioning(small.annotated(sd15), hooks)
    model = sd15.clone()
    model.register_all_hook_patches(hooks, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model))
    _, trace = guided(model, vae, positive, settings={"checkpointing": "on"})
    assert_guided(trace)
    assert left() == []


def test_a_search_for_the_face(sd15, left):
    with torch.inference_mode():
        maps, _ = find_faces(sd15, small.annotated(sd15), torch.zeros(1, 4, 16, 16), 3, 1.5, Settings(beta=BETA))
    assert maps.shape == (1, 1, 16, 16)
    assert left() == []


class Fail(torch.autograd.Function):
    """Raises on the way there, or on the way back."""

    @staticmethod
    def forward(ctx, q, kind, when):
        ctx.kind = kind
        if when == "forward":
            raise kind("by the test")
        return q.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ctx.kind("by the test")


@all_pairs(
    checkpointing=["off", "on"],
    when=["forward", "backward"],
    guided_pass=["full", "shared"],
    kind=[INTERRUPTED, RuntimeError],
)
def test_a_run_that_ends_early(sd15, vae, left, kind, guided_pass, when, checkpointing):
    model, raised = sd15.clone(), False
    model.set_model_attn2_patch(
        lambda q, k, v, extra: (Fail.apply(q, kind, when) if torch.is_grad_enabled() else q, k, v)
    )
    settings = {"guided_pass": guided_pass, "checkpointing": checkpointing}
    try:
        guided(model, vae, small.annotated(model), settings=settings)
    except kind:
        raised = True
    assert raised
    assert left() == []


class Marked(torch.autograd.Function):
    """Puts an object into the graph that lives as long as the graph does."""

    @staticmethod
    def forward(ctx, q, mark):
        ctx.mark = mark
        return q.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


@pytest.mark.parametrize("block", [11, 4], ids=["after the features", "before"])
def test_memory_that_runs_out_in_the_shared_pass(sd15, vae, monkeypatch, block):
    """The guided step that follows finds its graph gone; the picture is that of the full pass."""
    model, graphs, found = sd15.clone(), [], []

    def mark(q, k, v, extra):
        if torch.is_grad_enabled():
            graphs.append(weakref.ref(token := lambda: None))
            q = Marked.apply(q, token)
        return q, k, v

    def run_out(h, skip, transformer_options):
        if sharing and transformer_options["block"] == ("output", block) and not torch.is_inference_mode_enabled():
            raise OUT_OF_MEMORY("Tried to allocate 3.90 GiB.")
        return h, skip

    original, sharing = passes.run_rows, []

    def spy(twin, block, part, recorded, canvas, sigma, go_on=False):
        found.append(sum(graph() is not None for graph in graphs))
        sharing[:] = [True] * go_on
        return original(twin, block, part, recorded, canvas, sigma, go_on)

    model.set_model_attn2_patch(mark)
    model.set_model_output_block_patch(run_out)
    positive, settings = small.annotated(model), {"checkpointing": "off"}
    whole, _ = guided(model, vae, positive, settings=settings)
    monkeypatch.setattr(passes, "run_rows", spy)
    picture, trace = guided(model, vae, positive, settings=settings | {"guided_pass": "shared"})
    assert_guided(trace)
    assert len(found) == 2 * len(trace.steps) and len(graphs) > len(found)
    assert not any(found)
    assert torch.equal(picture, whole)
