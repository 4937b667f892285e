"""The floors by count of bench overhead, against what is counted in real runs of UNets with real tensors."""

import statistics

import comfy.supported_models
import pytest
import shallow
import torch
from omniportrait.backbone.attention import private_options
from omniportrait.guidance.reference_attention.attend import tokens_inside
from omniportrait.lab.bench.contenders import WINDOW_SIGMA, contenders, counted_run
from omniportrait.lab.bench.floor import counted, family_of, floors, meta_unet, run_pass
from omniportrait.lab.bench.live import LiveMemory
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.independent import arguments_of
from omniportrait.sampling.reference_head import head_mask

SIDE, STEPS = 16, 3
"""Two of the steps are guided."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, shape, lower, down, turn", [("SD15", shallow.SD15, 2, 1, 0), ("SDXL", shallow.SDXL, 0, 2, 1)]
)
def test_the_count_is_that_of_a_run_but_for_the_comparison(kind, shape, lower, down, turn, vae):
    """Every other way on each of the families."""
    model = small.unet(getattr(comfy.supported_models, kind), shape)
    ways = {way.name: way for way in contenders(lower)}

    def run_of(way):
        """(operations of a guided step, of the reference)"""
        metered = counted_run(ways[way], model, vae, SIDE, STEPS)
        inside = [amount for sigma, amount in metered.calls if sigma <= WINDOW_SIGMA]
        assert len(inside) == 2
        return statistics.fmean(inside), metered.reference

    plain, _ = run_of("plain KSampler")
    head = float(tokens_inside(head_mask(small.face()), (SIDE // down, SIDE // down)).float().mean())
    for floor in floors(shape, SIDE, lower, head)[turn::2]:
        step, reference = run_of(floor.way)
        assert reference / plain == pytest.approx(floor.reference, rel=1e-9), floor.way
        if floor.goal:  # Reference Attention compares nothing
            assert step / plain == pytest.approx(floor.step, rel=1e-6), floor.way
        else:
            assert 0 < step / plain - floor.step < 1e-3, floor.way


def test_memory_is_what_somebody_holds():
    """By hand, in tensors of 4,000 bytes; what was there before is free."""
    given = torch.zeros(1000, requires_grad=True)
    with LiveMemory() as memory:
        doubled = given * 2
        wave = doubled.sin()  # keeps `doubled` for its way back
        doubled.view(10, 100), given.detach()
        assert (memory.now, memory.peak) == (8000, 8000)
        del doubled
        assert memory.now == 8000
        energy = wave.sum()  # 4 bytes
        del wave
        assert (memory.now, memory.peak) == (4004, 8004)
        energy.backward()
        del energy
        assert memory.now == 4000 and given.grad is not None
        given.grad = None
        assert memory.now == 0


@pytest.mark.parametrize("kind, shape, checkpointing", [("SD15", small.SD15, False), ("SDXL", small.SDXL, True)])
def test_the_memory_is_that_of_a_real_pass(kind, shape, checkpointing):
    """But for what the count leaves out: a latent in float32, and the model's own embedding of the timestep."""
    model = small.unet(getattr(comfy.supported_models, kind), shape, dtype=torch.float16)
    side, block = 32, family_of(model.model.diffusion_model).feature_block()
    told = counted(meta_unet(shape, checkpointing), shape, 1, side, block)
    x = torch.randn(1, 4, side, side)
    arguments = arguments_of(model, x)
    with torch.inference_mode(False), torch.enable_grad():
        twin, leaf = small.twin(model, checkpointing=checkpointing), x.clone().requires_grad_(True)
        with LiveMemory() as memory:
            features, _ = twin.tap(block, leaf, torch.ones(1), arguments, private_options({}))
            held = memory.now
            features.backward(torch.ones_like(features))
    assert held == pytest.approx(told.held, rel=0.1) and memory.peak == pytest.approx(told.peak, rel=0.1)


@pytest.mark.parametrize("shape, side", [(small.SD15_FULL, 64), (small.SDXL_FULL, 128)])
def test_what_a_pass_is_expected_to_hold_is_within_a_fifth(shape, side):
    """What chooses checkpointing, at the sizes that people use."""
    unet = meta_unet(shape)
    family = family_of(unet)
    block = family.feature_block()
    expected = family.activation_bytes(block, 1, (side, side), torch.float16.itemsize)
    held = []
    with LiveMemory() as memory:  # as `counted` does, without the count of operations
        run_pass(unet, shape, 1, side, block, halfway=lambda: held.append(memory.now))
    assert expected == pytest.approx(held[0], rel=0.2)
