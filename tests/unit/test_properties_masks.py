"""What holds for every mask and map, whatever is in them: Eq. 6's pieces under hypothesis."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omniportrait.guidance.omniportrait import mask as region
from omniportrait.guidance.omniportrait.guide import limit, masked_rms

SIDES = st.integers(1, 12)
examples = settings(max_examples=60, deadline=None)


@st.composite
def maps(draw, batch: int | None = None, low: float = -3.0, high: float = 3.0) -> torch.Tensor:
    """[B, h, w] of coarse values, so that ties, constants and single peaks occur; sometimes minute or huge."""
    count = batch or draw(st.integers(1, 3))
    h, w, levels = draw(SIDES), draw(SIDES), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    steps = torch.randint(0, levels, (count, h, w), generator=generator) / max(levels - 1, 1)
    return (low + (high - low) * steps) * draw(st.sampled_from([1.0, 1e-6, 1e6]))


def neighbours(mask: np.ndarray) -> int:
    """How many 4-connected parts a mask has, by union of neighbours."""
    parent = {tuple(at): tuple(at) for at in np.argwhere(mask)}

    def root(at: tuple) -> tuple:
        while parent[at] != at:
            at = parent[at]
        return at

    for y, x in list(parent):
        for other in ((y + 1, x), (y, x + 1)):
            if other in parent:
                parent[root((y, x))] = root(other)
    return sum(at == above for at, above in parent.items())


@examples
@given(maps())
def test_min_max_fills_the_unit_interval_and_keeps_the_order(values):
    scaled = region.min_max(values)
    for before, after in zip(values, scaled, strict=True):
        if float(before.max() - before.min()) <= region.TINY:
            assert not after.any()
            continue
        assert float(after.min()) == 0 and math.isclose(float(after.max()), 1, abs_tol=1e-6)
        order = before.flatten().argsort()
        assert (after.flatten()[order].diff() >= 0).all()


@examples
@given(maps(), st.floats(0.5, 4), st.integers(1, 5), st.sampled_from(["outer", "inner"]))
def test_refined_maps_stay_in_the_unit_interval(values, alpha, gamma, form):
    """A row-stochastic smoothing, as attention is: any weights that add up to 1."""
    size = values.shape[-2:]
    weights = torch.rand(size.numel(), size.numel(), generator=torch.Generator().manual_seed(gamma)).softmax(dim=1)

    def smooth(each: torch.Tensor) -> torch.Tensor:
        return (each.flatten(1) @ weights.T).view_as(each)

    refined = region.refine(values, smooth, alpha, gamma, form)
    assert refined.shape == values.shape and refined.isfinite().all()
    assert 0 <= float(refined.min()) and float(refined.max()) <= 1


@examples
@given(maps(low=0.0, high=1.0), st.floats(0.0, 1.0))
def test_threshold_is_one_part_above_beta(values, beta):
    masks = region.threshold(values, beta)
    assert masks.dtype == torch.bool and masks.shape == values.shape
    assert not (masks & (values < beta)).any()
    for value, mask in zip(values, masks, strict=True):
        above = (value >= beta).numpy()
        assert neighbours(mask.numpy()) == (1 if above.any() else 0)
        inside, outside = mask.numpy(), above & ~mask.numpy()
        touching = np.zeros_like(inside)
        touching[1:] |= inside[:-1]
        touching[:-1] |= inside[1:]
        touching[:, 1:] |= inside[:, :-1]
        touching[:, :-1] |= inside[:, 1:]
        assert not (touching & outside).any()  # a whole part, not a piece of one


@examples
@given(st.data(), st.integers(1, 4))
def test_people_never_share_a_point_and_lose_none(data, people):
    refined = data.draw(maps(batch=people))[:, None]
    masks = refined >= data.draw(st.floats(-3, 3))
    apart = region.disjoint(refined, masks)
    assert (apart.sum(dim=0) <= 1).all()
    assert not (apart & ~masks).any()
    strongest = refined == refined.amax(dim=0, keepdim=True)
    everybody = masks.all(dim=0)
    assert apart.any(dim=0)[everybody].all()  # where all claim a point, one of them gets it
    assert not (apart & ~strongest).any()


@examples
@given(maps(low=0.0, high=1.0), SIDES, SIDES)
def test_a_resized_mask_is_never_lost_and_never_invented(values, h, w):
    mask = values > 0.5
    resized = region.resize_mask(mask, (h, w))
    assert resized.dtype == torch.bool and resized.shape == (len(mask), h, w)
    for before, after in zip(mask, resized, strict=True):
        assert bool(after.any()) == bool(before.any())
        if bool(before.all()):
            assert bool(after.all())
    if (h, w) == tuple(mask.shape[-2:]):
        assert torch.equal(resized, mask)


@examples
@given(maps(low=0.0, high=1.0).map(lambda m: m / m.amax().clamp_min(1e-30)), SIDES, SIDES)
def test_cover_is_monotone_and_between_its_bounds(values, h, w):
    values = values.clamp(0, 1)
    soft = region.shrink(values, (h, w))
    assert float(values.min()) - 1e-6 <= float(soft.min()) and float(soft.max()) <= float(values.max()) + 1e-6
    less, more = region.cover(values * 0.7, (h, w)), region.cover(values, (h, w))
    assert not (less & ~more).any()
    assert region.cover(torch.ones_like(values), (h, w)).all() and not region.cover(values * 0, (h, w)).any()


@examples
@given(maps(), st.floats(0.01, 2), st.integers(0, 10**6))
def test_the_limit_caps_and_never_turns_the_gradient(values, share, seed):
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(len(values), 4, *values.shape[-2:], generator=generator)
    yardstick = torch.randn(gradient.shape, generator=generator)
    inside = (values[:, None] > 0).float()
    limited = limit(gradient, yardstick, inside, share)
    assert limited.isfinite().all()
    assert (masked_rms(limited, inside) <= share * masked_rms(yardstick, inside) * (1 + 1e-4) + 1e-9).all()
    assert (limited.abs() <= gradient.abs() + 1e-9).all() and (limited * gradient >= 0).all()
