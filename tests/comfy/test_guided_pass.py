"""What the guided pass sees: half the resolution, the face alone, ComfyUI's own rows, a second block. Each against a
deep copy of the model with ordinary autograd, and through whole runs."""

from __future__ import annotations

import pytest
import torch
from omniportrait.backbone import private as private_pass
from omniportrait.lab.testbed import independent, small
from omniportrait.lab.testbed.guiding import ONE_CALL, assert_effective, assert_guided, change, footprint, guided
from omniportrait.sampling import passes
from omniportrait.sampling import session as run_module
from omniportrait.sampling import shared_call as shared_pass
from omniportrait.sampling.people import ByHand
from omniportrait.sampling.rows import private_options

SIGMA = 1.5


@pytest.fixture
def noisy():
    return torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(5)) * SIGMA


def weighted(features: torch.Tensor) -> torch.Tensor:
    """A number that depends on every feature."""
    return (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(8))).sum()


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6 * float(expected.abs().max()))


def opened(model, second_block=None, go_on=False):
    block = {"SD15": 5, "SDXL": 2}[type(model.model.model_config).__name__]
    return private_pass.PrivatePass(model.model, block, False, torch.device("cpu"), second_block, go_on), block


def test_half_resolution_against_a_deep_copy(family, noisy):
    """A pooled x whose noise has half the deviation, and the gradient back at full size."""
    with torch.inference_mode(False), torch.enable_grad():
        arguments = independent.arguments_of(family, noisy)
        private, block = opened(family)
        leaf = noisy.clone().requires_grad_(True)
        call = passes.halved(leaf, torch.full((1,), SIGMA), arguments)
        (found,) = torch.autograd.grad(weighted(private.features(*call, private_options({}))), leaf)

        leaf = noisy.clone().requires_grad_(True)
        small_x = torch.nn.functional.interpolate(leaf, size=(16, 16), mode="area")
        (features,) = independent.features(family, small_x, SIGMA / 2, arguments, (block,))
        (expected,) = torch.autograd.grad(weighted(features), leaf)
    same(found, expected)


def test_two_blocks_against_a_deep_copy(sd15, noisy):
    """Both outputs on the later one's grid, each scaled to unit RMS."""
    with torch.inference_mode(False), torch.enable_grad():
        arguments = independent.arguments_of(sd15, noisy)
        private, block = opened(sd15, second_block=2)
        leaf = noisy.clone().requires_grad_(True)
        features = private.features(leaf, torch.full((1,), SIGMA), arguments, private_options({}))
        (found,) = torch.autograd.grad(weighted(features), leaf)

        leaf = noisy.clone().requires_grad_(True)
        both = independent.features(sd15, leaf, SIGMA, arguments, (2, block))
        assert both[0].shape[-1] < both[1].shape[-1]
        both = [f / float(f.detach().square().mean() ** 0.5) for f in both]
        both[0] = torch.nn.functional.interpolate(both[0], size=both[1].shape[-2:], mode="bilinear")
        expected_features = torch.cat(both, dim=1)
        (expected,) = torch.autograd.grad(weighted(expected_features), leaf)
    same(features.detach(), expected_features.detach())
    same(found, expected)


def test_a_pass_that_goes_on_gives_the_same_and_the_prediction(family, noisy):
    """No gradient is kept after the feature block, and grad mode comes back."""
    with torch.inference_mode(False), torch.enable_grad():
        arguments = independent.arguments_of(family, noisy)
        found, sigma = {}, torch.full((1,), SIGMA)
        for go_on in (False, True):
            private, _ = opened(family, go_on=go_on)
            leaf = noisy.clone().requires_grad_(True)
            features = private.features(leaf, sigma, arguments, private_options({}))
            assert torch.is_grad_enabled()
            found[go_on] = features.detach(), torch.autograd.grad(weighted(features), leaf)[0]
        assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
        assert not private.prediction.requires_grad
        with torch.no_grad():
            plain = family.model._apply_model(noisy, sigma, transformer_options=private_options({}), **arguments)
    assert torch.equal(private.prediction, plain)


def spied(monkeypatch) -> list:
    """The rows of each private pass."""
    rows, original = [], run_module.run_rows

    def spy(*args):
        rows.append(original(*args))
        return rows[-1]

    monkeypatch.setattr(run_module, "run_rows", spy)
    return rows


SPOT = torch.zeros(1, 256, 256)
SPOT[:, 96:160, 80:130] = 1


def test_a_crop_sees_the_face_alone(sd15, vae, monkeypatch):
    """The first guided call looks at everything, the later ones at the face's box."""
    rows, positive = spied(monkeypatch), small.conditioning(sd15, 1)
    options = {"size": (32, 32), "steps": 6, "scheduler": "karras"}
    plain = small.sample(sd15, positive, **options)
    before = footprint(sd15)
    picture, trace = guided(
        sd15, vae, positive, settings={"guided_pass": "crop"}, by_hand=ByHand(small.face(), SPOT), **options
    )
    assert_guided(trace)
    assert len(rows) == len(trace.steps) > 1
    box = passes.face_box(trace.steps[0].mask[None, None])
    assert box == (16, 16, 8, 8)
    assert [row.area for row in rows] == [None, *[list(box)] * (len(rows) - 1)]
    assert all(row.x.shape[-2:] == (16, 16) for row in rows[1:])
    assert_effective(picture, plain)
    assert footprint(sd15) == before


def test_a_cropped_gradient_against_a_deep_copy(sd15, noisy):
    """What a box of x gives is what a picture of that size would give."""
    box = (16, 24, 8, 0)
    with torch.inference_mode(False), torch.enable_grad():
        arguments = independent.arguments_of(sd15, noisy)
        private, block = opened(sd15)
        leaf = passes.cut(noisy, box).clone().requires_grad_(True)
        features = private.features(
            leaf, torch.full((1,), SIGMA), passes.cropped(arguments, 32, box), private_options({})
        )
        (found,) = torch.autograd.grad(weighted(features), leaf)
        leaf = noisy[:, :, 8:24, :24].clone().requires_grad_(True)
        (features,) = independent.features(sd15, leaf, SIGMA, arguments, (block,))
        (expected,) = torch.autograd.grad(weighted(features), leaf)
    same(found, expected)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_sharing_gives_the_full_passes_picture(family, vae, monkeypatch, sampler, batch):
    """The same up to rounding, with one pass a call, and nothing left behind."""
    positive, options = small.annotated(family), {"steps": 5, "sampler": sampler, "batch": batch, "scheduler": "karras"}
    whole, trace = guided(family, vae, positive, **options)
    before, rows = footprint(family), spied(monkeypatch)
    passes_run, original = [], private_pass.PrivatePass.features

    def count(self, *args):
        passes_run.append(self)
        return original(self, *args)

    monkeypatch.setattr(private_pass.PrivatePass, "features", count)
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
    assert shared_pass.may_split({"transformer_options": options}, "own")
    assert not shared_pass.may_split({"transformer_options": options | {"multigpu_thread_device": "cpu"}}, "own")


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


@pytest.mark.parametrize("guided_pass", ["half", "shared", "crop"])
@pytest.mark.parametrize("size", [(16, 24), (17, 33)])
def test_odd_sizes_and_areas(sd15, vae, guided_pass, size):
    """Sizes that halve unevenly, and a person in a part of the picture."""
    tensor, values = small.annotated(sd15)[0]
    area = [[tensor, values | {"area": (16, 16, 0, 0), "strength": 1.0}]]
    for positive in (small.annotated(sd15), [*small.conditioning(sd15, 4), *area]):
        plain = small.sample(sd15, positive, size=size)
        picture, trace = guided(sd15, vae, positive, settings={"guided_pass": guided_pass}, size=size)
        assert trace.steps and not trace.skipped
        assert_effective(picture, plain)


def test_guiding_x0_alone_moves_the_whole_step(sd15, vae):
    """DragonDiffusion's step: Euler with the guided x0 and the unguided direction differs from plain by sigma g."""
    positive, sigmas = small.annotated(sd15), torch.tensor([1.5, 0.9])
    plain = small.sample(sd15, positive, sigmas=sigmas, steps=1)
    noise, _ = guided(sd15, vae, positive, sigmas=sigmas, steps=1)
    x0, _ = guided(sd15, vae, positive, settings={"target": "x0"}, sigmas=sigmas, steps=1)
    same(x0 - plain, (noise - plain) * 1.5 / (1.5 - 0.9))


def test_matched_noise_makes_the_reference_at_each_sigma(sd15, vae, monkeypatch):
    """Once a sigma, kept for the next run, and at t0's own sigma the same as the paper's."""
    from omniportrait.backbone.clock import sigma_of
    from omniportrait.sampling import reference_features as features

    made, original = [], features.compute

    def spy(private, latent, sigma, *args):
        made.append(sigma)
        return original(private, latent, sigma, *args)

    monkeypatch.setattr(features, "compute", spy)
    positive = small.annotated(sd15)
    first, trace = guided(sd15, vae, positive, settings={"reference_noise": "matched"}, sampler="heun")
    assert made == list(dict.fromkeys(step.sigma for step in trace.steps)) and len(made) > 1
    again, _ = guided(sd15, vae, positive, settings={"reference_noise": "matched"}, sampler="heun")
    assert len(made) == len(set(made)) and torch.equal(first, again)

    features.forget_all()
    sigma = sigma_of(sd15.get_model_object("model_sampling"), 500.0)
    one = {"sigmas": torch.tensor([sigma, 0.0]), "steps": 1}
    fixed, _ = guided(sd15, vae, positive, settings={"t0": 500.0}, **one)
    matched, _ = guided(sd15, vae, positive, settings={"reference_noise": "matched"}, **one)
    assert torch.equal(fixed, matched)


def test_matched_references_do_not_fill_the_memory(sd15, vae, monkeypatch):
    from omniportrait.sampling import reference_features as features

    monkeypatch.setattr(features, "CACHE_BYTES", 1)
    positive = small.annotated(sd15)
    bounded, _ = guided(sd15, vae, positive, settings={"reference_noise": "matched"}, steps=6)
    assert len(features._cache) == 0
    monkeypatch.undo()
    free, _ = guided(sd15, vae, positive, settings={"reference_noise": "matched"}, steps=6)
    assert len(features._cache) > 1 and torch.equal(bounded, free)


@pytest.mark.parametrize("settings", [{"second_block": 2}, {"mutual": True}, {"feather": 2}, {"guided_pass": "half"}])
def test_each_option_guides_in_its_own_way(sd15, vae, settings):
    positive = small.annotated(sd15)
    plain, trace = change(sd15, vae, positive, settings={"clip": 0.0})
    other, other_trace = change(sd15, vae, positive, settings={"clip": 0.0, **settings})
    assert_guided(trace, 1)
    assert_guided(other_trace, 1)
    assert (plain - other).abs().max() > 1e-3 * plain.abs().max()


def test_a_second_block_must_come_first(sd15, vae):
    with pytest.raises(ValueError, match="before the feature block, which is 5"):
        guided(sd15, vae, small.annotated(sd15), settings={"second_block": 5}, **ONE_CALL)


def test_a_feathered_edge_leaves_the_inside_alone(sd15, vae):
    """Two latent pixels from the edge the change is the hard mask's, beyond two outside there is none."""
    positive, by_hand = small.conditioning(sd15, 1), ByHand(small.face(), SPOT)
    options = {"settings": {"clip": 0.0}, "by_hand": by_hand, "size": (32, 32)}
    hard, trace = change(sd15, vae, positive, **options)
    soft, _ = change(sd15, vae, positive, **{**options, "settings": {"clip": 0.0, "feather": 2}})
    mask = trace.steps[0].mask
    near = torch.nn.functional.max_pool2d(mask[None, None].float(), 5, 1, 2)[0, 0] > 0
    deep = torch.nn.functional.max_pool2d((~mask)[None, None].float(), 5, 1, 2)[0, 0] == 0
    assert deep.any()
    torch.testing.assert_close(soft[0][:, deep], hard[0][:, deep], rtol=1e-5, atol=1e-6)
    assert soft[0][:, ~near].abs().max() <= 1e-6 < soft[0][:, near & ~mask].abs().max()
