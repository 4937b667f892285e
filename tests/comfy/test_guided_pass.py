"""The guided rows run in ComfyUI's own call, against the pass of their own."""

from __future__ import annotations

import pytest
import torch
from omniportrait.backbone.attention import private_options
from omniportrait.backbone.private import PrivateTwin
from omniportrait.lab.testbed import independent, small
from omniportrait.lab.testbed.guiding import assert_effective, assert_guided, footprint, guided
from omniportrait.sampling import passes
from omniportrait.sampling.shared_call import may_split
from parameters import all_pairs

SIGMA = 1.5


@pytest.fixture
def noisy():
    return torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(5)) * SIGMA


def weighted(features: torch.Tensor) -> torch.Tensor:
    """A number that depends on every feature."""
    return (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(8))).sum()


def test_a_pass_that_goes_on_gives_the_same_and_the_prediction(family, noisy):
    """No gradient is kept after the feature block, and grad mode comes back."""
    with torch.inference_mode(False), torch.enable_grad():
        arguments = independent.arguments_of(family, noisy)
        found, sigma, twin = {}, torch.full((1,), SIGMA), small.twin(family)
        for go_on in (False, True):
            leaf = noisy.clone().requires_grad_(True)
            block = twin.family.feature_block(-1)
            features, denoised = twin.tap(block, leaf, sigma, arguments, private_options({}), go_on)
            assert torch.is_grad_enabled()
            found[go_on] = features.detach(), torch.autograd.grad(weighted(features), leaf)[0]
        assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
        assert not denoised.requires_grad
        with torch.no_grad():
            plain = family.model._apply_model(noisy, sigma, transformer_options=private_options({}), **arguments)
    assert torch.equal(denoised, plain)


def spied(monkeypatch) -> list:
    """The rows of each private pass."""
    rows, original = [], passes.run_rows

    def spy(*args):
        rows.append(original(*args))
        return rows[-1]

    monkeypatch.setattr(passes, "run_rows", spy)
    return rows


@all_pairs(family=["sd15", "sdxl"], batch=[1, 2], sampler=["euler", "heun"])
def test_sharing_gives_the_full_passes_picture(family, vae, monkeypatch, sampler, batch):
    """The same up to rounding, with one pass a call, and nothing left behind."""
    positive, options = small.annotated(family), {"steps": 5, "sampler": sampler, "batch": batch, "scheduler": "karras"}
    whole, trace = guided(family, vae, positive, **options)
    before, rows = footprint(family), spied(monkeypatch)
    passes_run, original = [], PrivateTwin.tap

    def count(self, *args):
        passes_run.append(self)
        return original(self, *args)

    monkeypatch.setattr(PrivateTwin, "tap", count)
    shared, shared_trace = guided(family, vae, positive, settings={"guided_pass": "shared"}, **options)
    assert_guided(shared_trace, len(trace.steps))
    assert len(rows) == len(trace.steps) == len(passes_run)
    torch.testing.assert_close(shared, whole, rtol=0, atol=2e-4 * float(whole.abs().max()))
    assert footprint(family) == before


@pytest.mark.parametrize("area", [{}, {"area": (8, 16, 8, 0), "strength": 1.0}], ids=["whole", "area"])
def test_sharing_when_memory_lets_no_two_conditionings_run_together(sd15, vae, monkeypatch, area):
    """A call without people's rows is none of ours; nor is that of the copy of the person's area that ComfyUI makes for
    the negative, under the same uuid, and runs first."""
    monkeypatch.setattr(type(sd15.model), "memory_required", lambda *args, **kwargs: 1e30)
    tensor, values = small.annotated(sd15)[0]
    positive = [[tensor, values | area], *small.conditioning(sd15, 4)]
    whole, trace = guided(sd15, vae, positive, settings={"checkpointing": "off"})
    rows = spied(monkeypatch)
    shared, shared_trace = guided(sd15, vae, positive, settings={"checkpointing": "off", "guided_pass": "shared"})
    assert_guided(shared_trace, len(trace.steps))
    assert len(rows) == len(trace.steps)
    torch.testing.assert_close(shared, whole, rtol=0, atol=2e-4 * float(whole.abs().max()))


def test_work_of_several_cards_is_not_split():
    """MultiGPU Work Units: a call may be on another card than the guided rows."""
    options = {"uuids": [1]}
    assert may_split({"transformer_options": options})
    assert not may_split({"transformer_options": options | {"multigpu_thread_device": "cpu"}})


def test_sharing_steps_back_for_other_packs(sd15, vae):
    """Another pack's wrapper around the UNet must see the whole batch: then the picture is bit-equal to the full
    pass's."""
    from comfy.patcher_extension import WrappersMP

    seen = []

    def other(executor, x, *args, **kwargs):
        seen.append(len(x))
        return executor(x, *args, **kwargs)

    patched = sd15.clone()
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "other", other)
    positive = small.annotated(sd15)
    whole, _ = guided(patched, vae, positive)
    full, seen[:] = list(seen), []
    shared, trace = guided(patched, vae, positive, settings={"guided_pass": "shared"})
    assert_guided(trace)
    assert torch.equal(shared, whole) and seen == full


@pytest.mark.parametrize("size", [(16, 24), (17, 33)])
def test_odd_sizes_and_areas(sd15, vae, size):
    """Sizes that halve unevenly, and a person in a part of the picture."""
    tensor, values = small.annotated(sd15)[0]
    area = [[tensor, values | {"area": (16, 16, 0, 0), "strength": 1.0}]]
    for positive in (small.annotated(sd15), [*small.conditioning(sd15, 4), *area]):
        plain = small.sample(sd15, positive, size=size)
        picture, trace = guided(sd15, vae, positive, settings={"guided_pass": "shared"}, size=size)
        assert trace.steps and not trace.skipped
        assert_effective(picture, plain)
