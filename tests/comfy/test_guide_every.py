"""The gradient made at every k-th sigma and held in between: fewer passes, the same cap."""

from __future__ import annotations

import itertools

import comfy.sample
import comfy.samplers
import pytest
import torch
from omniportrait.guidance.omniportrait import guide as guide_module
from omniportrait.guidance.omniportrait.settings import Settings
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import assert_effective, assert_guided, footprint, guide, guided
from omniportrait.sampling import gradient as gradient_module
from omniportrait.sampling import passes as passes_module
from omniportrait.sampling.rows import failure

STEPS = {"steps": 8, "scheduler": "karras"}


def counted(monkeypatch) -> list[float]:
    """The sigma of each private pass with a gradient."""
    passes, original = [], passes_module.run_rows

    def spy(twin, block, part, recorded, canvas, sigma, *rest):
        passes.append(float(sigma[0]))
        return original(twin, block, part, recorded, canvas, sigma, *rest)

    monkeypatch.setattr(passes_module, "run_rows", spy)
    return passes


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_every_other_sigma(sd15, vae, monkeypatch, sampler):
    """Heun asks twice at most sigmas: both calls are made anew, or both are held."""
    positive = small.annotated(sd15)
    plain = small.sample(sd15, positive, sampler=sampler, **STEPS)
    before = footprint(sd15)
    passes = counted(monkeypatch)
    whole, all_of_it = guided(sd15, vae, positive, sampler=sampler, **STEPS)
    assert passes == [step.sigma for step in all_of_it.steps]
    passes.clear()
    picture, trace = guided(sd15, vae, positive, settings={"every": 2}, sampler=sampler, **STEPS)
    assert_guided(trace, calls=len(all_of_it.steps))
    inside = list(dict.fromkeys(step.sigma for step in trace.steps))
    assert passes == [step.sigma for step in trace.steps if inside.index(step.sigma) % 2 == 0]
    assert 0 < len(passes) < len(trace.steps)
    assert_effective(picture, plain)
    assert not torch.equal(picture, whole)
    assert footprint(sd15) == before
    again, _ = guided(sd15, vae, positive, settings={"every": 2}, sampler=sampler, **STEPS)
    assert torch.equal(again, picture)


def test_a_held_gradient_is_capped_anew(sd15, vae, monkeypatch):
    """At each call the cap is a share of that call's own CFG difference."""
    seen, original = [], guide_module.limit

    def spy(gradient, yardstick, inside, share):
        limited = original(gradient, yardstick, inside, share)
        seen.append(
            (gradient.clone(), guide_module.masked_rms(limited, inside), guide_module.masked_rms(yardstick, inside))
        )
        return limited

    monkeypatch.setattr(guide_module, "limit", spy)
    settings = {"every": 100, "gain": 1e6, "clip": 0.2}
    _, trace = guided(sd15, vae, small.annotated(sd15), settings=settings, **STEPS)
    assert len(seen) == len(trace.steps) > 2
    for gradient, limited, yardstick in seen:
        assert torch.equal(gradient, seen[0][0])
        torch.testing.assert_close(limited, 0.2 * yardstick, rtol=1e-3, atol=0)
    assert len({float(yardstick) for _, _, yardstick in seen}) == len(seen)


def test_a_call_in_which_nobody_was_found_is_not_held(sd15, vae, monkeypatch):
    """The face is looked for again at the next sigma, and what is found there serves until the next that is due."""
    answers = itertools.chain(["no face found"], itertools.repeat(None))
    monkeypatch.setattr(gradient_module, "failure", lambda *_: next(answers))
    passes = counted(monkeypatch)
    _, trace = guided(sd15, vae, small.annotated(sd15), settings={"every": 4}, **STEPS)
    assert trace.skipped == {"no face found": 1} and len(trace.steps) > 4
    assert passes == [trace.steps[k].sigma for k in (0, 1, 4)]


def test_it_cannot_be_less_than_one():
    with pytest.raises(ValueError, match="every 0 steps; choose 1 or more"):
        Settings(every=0)


class StartsOver(comfy.samplers.Sampler):
    """Euler down the sigmas, and once more from the second one with fresh noise."""

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *_, **__):
        def down(x, sigmas):
            for now, after in itertools.pairwise(sigmas):
                x = x + (x - model_wrap(x, now * x.new_ones(len(x)), **extra_args)) / now * (after - now)
            return x

        x = down(noise * sigmas[0], sigmas)
        again = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        return down(x + again * (sigmas[1] ** 2 - sigmas[-1] ** 2) ** 0.5, sigmas[1:])


class CalledAt(comfy.samplers.Sampler):
    """Asks the model at these sigmas, whatever comes of it."""

    def __init__(self, sigmas: list[float]) -> None:
        self.sigmas = sigmas

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *_, **__):
        for sigma in self.sigmas:
            model_wrap(noise * sigma, sigma * noise.new_ones(len(noise)), **extra_args)
        return noise


def sample_by(sampler: comfy.samplers.Sampler, patched, sigmas: list[float]) -> None:
    """A person's picture by a sampler of our own."""
    with torch.inference_mode():
        guider = comfy.samplers.CFGGuider(patched)
        guider.set_conds(small.annotated(patched), small.conditioning(patched, 2))
        guider.set_cfg(7.5)
        latent = torch.zeros(1, 4, 16, 16)
        noise = comfy.sample.prepare_noise(latent, 3)
        guider.sample(noise, latent, sampler, torch.tensor(sigmas), disable_pbar=True, seed=3)


def called_at(patched, sigmas: list[float]) -> None:
    sample_by(CalledAt(sigmas), patched, [*sigmas, 0.0])


def test_a_gradient_of_less_noise_does_not_serve_more(sd15, vae, monkeypatch):
    """A sampler that goes back up is at another picture: sigmas are counted anew from there."""
    patched, traces = guide(sd15, vae, every=2)
    passes = counted(monkeypatch)
    sample_by(StartsOver(), patched, [2.0, 1.4, 0.9, 0.5, 0.2, 0.06])
    assert_guided(traces[0], calls=9)
    assert passes == pytest.approx([2.0, 0.9, 0.2, 1.4, 0.5])


def test_a_way_back_over_the_outside_of_the_window_counts(sd15, vae, monkeypatch):
    """What is held is no good after it, though inside the window the sigmas only fall."""
    patched, traces = guide(sd15, vae, every=3)
    passes = counted(monkeypatch)
    called_at(patched, [2.0, 1.2, 10.0, 1.1, 0.9])
    assert_guided(traces[0], calls=4)
    assert passes == pytest.approx([2.0, 1.1])


def test_a_sigma_that_a_sampler_computes_is_the_one_it_was_given(sd15, vae, monkeypatch):
    """Up by a rounding is no way back, and down by one no next sigma."""
    patched, traces = guide(sd15, vae, every=2)
    passes = counted(monkeypatch)
    called_at(patched, [2.0, 1.2, 1.2 * (1 + 2e-7), 1.2 * (1 - 2e-7), 0.9])
    assert_guided(traces[0], calls=5)
    assert passes == pytest.approx([2.0, 0.9])


@pytest.mark.parametrize("guided_pass", ["full", "shared"])
def test_a_picture_of_a_batch_does_not_wait_for_the_others(sd15, vae, monkeypatch, guided_pass):
    """The second picture's face is found one sigma later. It then has its gradient, alone or beside one that holds."""
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(8))
    settings = {"every": 3, "guided_pass": guided_pass}

    def run(*pictures):
        places, original = itertools.cycle(pictures), failure
        first = set(pictures)

        def late(*args):
            number = next(places)
            if number in first:
                first.discard(number)
                if number == 1:
                    return "no face found"
            return original(*args)

        monkeypatch.setattr(gradient_module, "failure", late)
        options = {"noise": noise[list(pictures)], "batch": len(pictures)}
        return guided(sd15, vae, small.annotated(sd15), settings=settings, **options, **STEPS)

    both, trace = run(0, 1)
    alone = [run(number) for number in range(2)]
    assert trace.skipped == alone[1][1].skipped == {"no face found": 1} and not alone[0][1].skipped
    plain = small.sample(sd15, small.annotated(sd15), noise=noise, batch=2, **STEPS)
    for number, (picture, _) in enumerate(alone):
        moved = float((picture[0] - plain[number]).abs().max())
        assert (both[number] - picture[0]).abs().max() < 2e-2 * moved
