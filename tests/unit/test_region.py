"""Eq. 6 and the masks, against naive loops and closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omniportrait.guidance.omniportrait import mask as region


def random_maps(seed=0, b=2, h=7, w=9):
    return torch.rand(b, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def row_stochastic(n, seed=1):
    return torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(dim=1)


def smooth_by(matrix):
    return lambda maps: (maps.flatten(1) @ matrix.T).view(maps.shape)


def naive_norm(grid):
    flat = [v for row in grid for v in row]
    low, high = min(flat), max(flat)
    return [[(v - low) / (high - low) for v in row] for row in grid]


@pytest.mark.parametrize("alpha, gamma", [(2.0, 3), (1.5, 2), (3.0, 1)])
def test_nested_form_is_the_power_form(alpha, gamma):
    """After the first min-max the range is [0, 1] and powers keep it, so the nest equals one power."""
    maps = random_maps()
    expected = region.min_max(maps) ** (alpha**gamma)
    torch.testing.assert_close(region.nested_norm(maps, alpha, gamma), expected, rtol=1e-12, atol=1e-12)


def test_nested_form_against_plain_python():
    grid = random_maps(3, 1)[0].tolist()
    for _ in range(3):
        grid = [[v**2 for v in row] for row in naive_norm(grid)]
    torch.testing.assert_close(
        region.nested_norm(random_maps(3, 1), 2.0, 3)[0], torch.tensor(grid, dtype=torch.float64)
    )


def test_outer_form_is_as_printed():
    maps, matrix = random_maps(), row_stochastic(63)
    bracket = region.min_max(maps) ** 8
    expected = torch.stack([(matrix @ m.flatten()).view(7, 9) for m in bracket])
    torch.testing.assert_close(region.refine(maps, smooth_by(matrix), 2.0, 3, "outer"), region.min_max(expected))


def test_inner_form_smooths_inside_the_loop():
    maps, matrix = random_maps(), row_stochastic(63)
    expected = maps
    for _ in range(3):
        expected = torch.stack([(matrix @ m.flatten()).view(7, 9) for m in expected])
        expected = torch.stack([((m - m.min()) / (m.max() - m.min())) ** 2 for m in expected])
    got = region.refine(maps, smooth_by(matrix), 2.0, 3, "inner")
    torch.testing.assert_close(got, region.min_max(expected))
    assert not torch.allclose(got, region.refine(maps, smooth_by(matrix), 2.0, 3, "outer"))


def test_unknown_form_is_refused():
    with pytest.raises(ValueError, match="outer"):
        region.refine(random_maps(), smooth_by(row_stochastic(63)), 2.0, 3, "both")


def test_constant_map_says_nothing():
    assert region.min_max(torch.full((1, 4, 4), 0.3)).eq(0).all()


def flood(mask):
    """Largest 4-connected part by a plain flood fill; the first found of equal sizes."""
    h, w = mask.shape
    seen, best = np.zeros_like(mask), []
    for start in zip(*np.nonzero(mask), strict=True):
        if seen[start]:
            continue
        part, todo = [], [start]
        seen[start] = True
        while todo:
            y, x = todo.pop()
            part.append((y, x))
            for a, b in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if 0 <= a < h and 0 <= b < w and mask[a, b] and not seen[a, b]:
                    seen[a, b] = True
                    todo.append((a, b))
        if len(part) > len(best):
            best = part
    out = np.zeros_like(mask)
    for at in best:
        out[at] = True
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6))
def test_largest_component_against_flood_fill(h, w, seed):
    mask = torch.rand(1, h, w, generator=torch.Generator().manual_seed(seed)) > 0.5
    got = region.largest_component(mask)[0].numpy()
    expected = flood(mask[0].numpy())
    assert got.sum() == expected.sum()
    assert not (got & ~mask[0].numpy()).any()
    assert np.array_equal(flood(got), got)


def test_threshold_keeps_one_part_and_may_be_empty():
    maps = torch.zeros(2, 6, 6)
    maps[0, :2, :2], maps[0, 4:, 3:] = 0.9, 0.8
    mask = region.threshold(maps, 0.5)
    assert mask[0].sum() == 6 and mask[0, 4:, 3:].all()
    assert not mask[1].any()


def test_disjoint_gives_each_point_to_the_strongest():
    refined = torch.rand(3, 2, 5, 5, generator=torch.Generator().manual_seed(4))
    masks = refined > 0.3
    split = region.disjoint(refined, masks)
    assert split.sum(dim=0).max() == 1
    for b in range(2):
        for y in range(5):
            for x in range(5):
                best = max(range(3), key=lambda k: refined[k, b, y, x])
                assert [bool(split[k, b, y, x]) for k in range(3)] == [
                    k == best and bool(masks[k, b, y, x]) for k in range(3)
                ]


def test_one_person_keeps_the_mask():
    refined = torch.rand(1, 1, 4, 4)
    assert region.disjoint(refined, refined > 0.5).equal(refined > 0.5)


def test_cover_counts_cells_at_least_half_covered():
    mask = torch.zeros(1, 8, 8)
    mask[:, :4, :3] = 1
    expected = torch.zeros(1, 2, 2, dtype=torch.bool)
    expected[:, 0, 0] = True  # 12 of 16 pixels
    assert region.cover(mask, (2, 2)).equal(expected)


def test_resize_mask_keeps_booleans():
    mask = torch.tensor([[[True, False], [False, True]]])
    big = region.resize_mask(mask, (4, 4))
    assert big.dtype == torch.bool and big[0, :2, :2].all() and not big[0, :2, 2:].any()
