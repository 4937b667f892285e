"""IC-Portrait's equations, each against loops over pixels or against what has to come out."""

from __future__ import annotations

import math

import pytest
import torch
from omniportrait.guidance.ic_portrait import aggregate, flow, masking, objective, settings


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_eq_1_keeps_a_share_of_the_pixels_and_all_their_channels():
    picture = 0.1 + 0.9 * torch.rand(3, 200, 200, generator=torch.Generator().manual_seed(1))
    shown = masking.kept(picture, 0.1, torch.Generator().manual_seed(2))
    lit = (shown != 0).all(0)
    assert torch.equal(lit, (shown != 0).any(0)) and torch.equal(shown[:, lit], picture[:, lit])
    assert abs(float(lit.float().mean()) - 0.1) < 4 * math.sqrt(0.09 / 200**2)
    halves = [float(part.float().mean()) for part in lit.view(2, 100, 2, 100).movedim(2, 1).flatten(0, 1)]
    assert max(halves) - min(halves) < 0.03  # everywhere alike
    assert torch.equal(shown, masking.kept(picture, 0.1, torch.Generator().manual_seed(2)))
    assert not torch.equal(shown, masking.kept(picture, 0.1, torch.Generator().manual_seed(3)))
    assert not masking.kept(picture, 0.0, torch.Generator()).any()
    assert torch.equal(masking.kept(picture, 1.0, torch.Generator()), picture)


def test_eq_2_joins_along_the_width():
    left, right = drawn(2, 4, 3, 5), drawn(2, 4, 3, 5, seed=1)
    both = masking.joined(left, right)
    assert both.shape == (2, 4, 3, 10) and torch.equal(both[..., 4], left[..., 4])
    assert torch.equal(both[..., 5], right[..., 0]) and all(map(torch.equal, masking.halves(both), (left, right)))


def test_eq_3_is_the_weighted_mean_of_squares():
    predicted, noise = drawn(2, 4, 3, 6), drawn(2, 4, 3, 6, seed=1)
    weights = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(2))
    left, right = objective.both_halves(predicted, noise, weights)
    for i in range(2):
        wanted = total = 0.0
        for y in range(3):
            for x in range(3):
                error = sum(float(predicted[i, c, y, 3 + x] - noise[i, c, y, 3 + x]) ** 2 for c in range(4)) / 4
                wanted, total = wanted + error * float(weights[i, y, x]), total + float(weights[i, y, x])
        assert float(right[i]) == pytest.approx(wanted / total, rel=1e-5)
        assert float(left[i]) == pytest.approx(float((predicted - noise)[i, ..., :3].square().mean()), rel=1e-5)


def test_eq_5_is_the_cosine():
    profile, lit = drawn(1, 7, 2, 3), drawn(1, 7, 2, 3, seed=1)
    cost = flow.cost_volume(profile, lit)
    assert cost.shape == (1, 6, 6)
    for v in range(6):
        for u in range(6):
            one, two = lit[0, :, v // 3, v % 3], profile[0, :, u // 3, u % 3]
            assert float(cost[0, v, u]) == pytest.approx(float(one @ two / one.norm() / two.norm()), abs=1e-5)


def test_eq_6_finds_a_permutation_and_the_way_back():
    size = (6, 8)
    profile = drawn(1, 64, *size)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(3))
    lit = profile.flatten(2)[..., order].unflatten(2, size)
    cost = flow.cost_volume(profile, lit)
    found = flow.match(cost, size)[0].flatten(0, 1)
    row, column = order // 8, order % 8
    wanted = torch.stack([(column + 0.5) / 8, (row + 0.5) / 6], -1)
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)
    assert flow.trusted(cost, size, 0.5).all()
    one = flow.cost_volume(profile, profile[..., 2:3, 4:5].expand_as(profile))  # all look like the cell at (2, 4)
    back = [(y, x) for y, x in flow.trusted(one, size, 0.5)[0].nonzero().tolist()]
    centre = one.argmax(1)[0, 2 * 8 + 4].item()  # where that cell's own best match lies
    assert back == [
        (y, x) for y in range(6) for x in range(8)
        if math.hypot((x - centre % 8) / 8, (y - centre // 8) / 6) < 0.2
    ]  # fmt: skip


def test_the_prior_keeps_the_match_in_its_window():
    size = (10, 10)
    cost = flow.cost_volume(drawn(1, 3, *size), drawn(1, 3, *size, seed=1))
    own = flow.own_places(*size)[None]
    away = (flow.match(cost, size, near=own) - own).abs() * 10
    assert away.max() <= flow.WINDOW and away.max() > 0.5


def test_warp_by_the_own_places_is_the_picture_and_by_a_shift_the_shift():
    picture = drawn(1, 2, 5, 8)
    torch.testing.assert_close(flow.warp(picture, flow.own_places(5, 8)[None]), picture)
    shifted = flow.own_places(5, 8)[None] + torch.tensor([2 / 8, -1 / 5])
    warped = flow.warp(picture, shifted)
    torch.testing.assert_close(warped[..., 1:, :6], picture[..., :-1, 2:])
    assert torch.equal(warped[..., 1:, 7], warped[..., 1:, 6])  # the border again
    finer = flow.warp(picture, flow.own_places(10, 16)[None] + torch.tensor([2 / 8, 0]))
    torch.testing.assert_close(finer[..., :6], picture[..., 2:])


def test_a_transform_as_a_flow():
    turn = torch.tensor([[[0.0, -0.5, 0.9], [0.7, 0.0, 0.1]]])
    found = flow.affine(turn, (4, 6))
    for row in range(4):
        for column in range(6):
            x, y = (column + 0.5) / 6, (row + 0.5) / 4
            assert found[0, row, column].tolist() == pytest.approx([-0.5 * y + 0.9, 0.7 * x + 0.1])


def test_eq_7_falls_from_the_finest_level_to_the_coarsest():
    assert aggregate.weight(0, 12, 0.8, 0.2) == pytest.approx(1.0)
    assert aggregate.weight(12, 12, 0.8, 0.2) == pytest.approx(0.2)
    assert aggregate.weight(3, 12, 0.8, 0.2) == pytest.approx(0.8)
    assert aggregate.weight(5, 12, 0.0, 1.0) == 1.0  # the paper's ablation


def test_only_the_lit_half_takes_the_warped_profile():
    features = [drawn(1, 2, 4, 8), drawn(1, 3, 2, 4, seed=1)]
    own = flow.own_places(4, 4)[None]
    first, last = aggregate.aggregated(features, [own, own], 0.6, 0.3)
    for got, given, weight in ((first, features[0], 0.9), (last, features[1], 0.3)):
        width = given.shape[-1] // 2
        assert torch.equal(got[..., :width], given[..., :width])
        torch.testing.assert_close(got[..., width:], given[..., width:] + weight * given[..., :width])
    untouched = aggregate.aggregated(features, [None, None], 0.6, 0.3)
    assert all(map(torch.equal, untouched, features))


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (4, 4)])
def test_a_known_flow_at_fewer_cells_moves_as_far(size):
    """Nothing moved is nothing moved at any size, and a shift is that shift."""
    own = flow.own_places(32, 32)[None]
    known = torch.ones(1, 32, 32, dtype=torch.bool)
    for shift in ((0.0, 0.0), (0.1, -0.05)):
        found, seen = objective.at_size(own + torch.tensor(shift), known, size)
        torch.testing.assert_close(found, flow.own_places(*size)[None] + torch.tensor(shift))
        assert seen.all() and seen.shape == (1, *size)


def test_correspondence_is_the_cross_entropy_of_what_is_known():
    cost = (drawn(1, 6, 6) / 4).requires_grad_()
    true = torch.tensor([3, 0, 5, 1, 2, 4])
    places = flow.own_places(2, 3).flatten(0, 1)[true].view(1, 2, 3, 2)
    known = torch.tensor([[[True, False, True], [False, False, True]]])
    loss = objective.correspondence(cost, places, known)
    told = []
    for cell in (0, 2, 5):
        scores = (cost[0, cell] / flow.TEMPERATURE).tolist()
        told.append(-scores[true[cell]] + max(scores) + math.log(sum(math.exp(s - max(scores)) for s in scores)))
    assert float(loss.detach()) == pytest.approx(sum(told) / 3, rel=1e-5)
    loss.sum().backward()
    assert cost.grad[0, [0, 2, 5]].any() and not cost.grad[0, [1, 3, 4]].any()
    assert not objective.correspondence(cost, places, torch.zeros_like(known)).any()


def test_passes_are_read_or_refused_in_one_sentence():
    assert settings.passes_of(" 0.7,0.5 , 0.35") == (0.7, 0.5, 0.35) and settings.passes_of("1") == (1.0,)
    for wrong in ("", "0.7;0.5", "0", "1.2", "0.5,", "nan", ",".join(["0.5"] * 9)):
        with pytest.raises(ValueError, match=r"such as 0\.7, 0\.5, 0\.35\.$"):
            settings.passes_of(wrong)


def test_a_flow_that_is_not_offered_is_refused():
    with pytest.raises(ValueError, match="landmarks, shared, layer, none"):
        settings.Settings(flow="guess")
    assert settings.Settings(strength=0.0).off and settings.Settings(end_percent=0.0).off
    assert not settings.Settings().off
