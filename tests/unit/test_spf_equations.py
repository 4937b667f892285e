"""SPF-Portrait's equations against loops in NumPy, and what each of them has to mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from omniportrait.guidance.spf_portrait import align, control_map, enhance, objective
from omniportrait.guidance.spf_portrait.settings import ControlMap


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(*shape: int, seed: int = 0) -> torch.Tensor:
    return noise(*shape, seed=seed).softmax(-1)


# Eq. 7


def test_difference_is_the_blurred_mean_change_from_its_least_to_its_largest():
    response, reference = noise(1, 3, 5, 4), noise(1, 3, 5, 4, seed=1)
    apart = np.abs((response - reference)[0].numpy().astype(np.float64)).mean(0)
    blurred = np.zeros_like(apart)
    for row in range(5):
        for column in range(4):
            window = apart[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            blurred[row, column] = window.mean()
    expected = (blurred - blurred.min()) / (blurred.max() - blurred.min())
    found = control_map.difference(response, reference, blur=3)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_paths_that_agree_give_no_map():
    same = noise(2, 4, 6, 6)
    assert control_map.difference(same, same, 3, 0.02).abs().max() == 0


def test_a_difference_below_the_floor_counts_in_proportion():
    reference = noise(1, 4, 6, 6)
    response = reference.clone()
    response[0, :, 2, 2] += 0.005 * float(reference.square().mean().sqrt())
    found = control_map.difference(response, reference, blur=1, floor=0.02)
    assert float(found.max()) == pytest.approx(0.25, rel=1e-3)
    assert float(control_map.difference(response, reference, blur=1).max()) == 1.0


# Eq. 8 and 9


def test_control_map_subtracts_each_phrase_by_its_distance():
    maps, states, n = attention(4, 4, 9), noise(9, 6, seed=2), torch.rand(4, 4, generator=torch.Generator())
    phrases, target = [(1, 3), (3, 4)], (5, 7)
    expected = n.numpy().astype(np.float64).copy()
    for first, last in phrases:
        one, other = states[first:last].numpy().mean(0), states[5:7].numpy().mean(0)
        apart = 1 - one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        for row in range(4):
            for column in range(4):
                expected[row, column] -= apart * maps[row, column, first:last].numpy().sum()
    expected = np.clip(3 * expected, 0, 1)
    found, *_ = control_map.fine_control(n, maps, maps.flip(0), states, phrases, target, ControlMap(gain=3))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_literal_reading_stretches_the_response_paths_maps():
    reference, response, states = attention(4, 4, 9), attention(4, 4, 9, seed=3), noise(9, 6, seed=2)
    n = torch.rand(4, 4, generator=torch.Generator().manual_seed(4))
    share = response[..., 1:3].sum(-1).numpy().astype(np.float64)
    share = (share - share.min()) / (share.max() - share.min())
    expected = np.clip(n.numpy() - 0.5 * share, 0, 1)
    settings = ControlMap(reading="literal", distance="constant", gain=3)
    found, *_ = control_map.fine_control(n, reference, response, states, [(1, 3)], (5, 7), settings)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_without_a_distance_the_map_is_the_noise_difference():
    n = torch.rand(4, 4, generator=torch.Generator().manual_seed(4))
    settings = ControlMap(gain=1, subtract=0)
    for phrases in ([(1, 3)], []):
        found, *_ = control_map.fine_control(
            n, attention(4, 4, 9), attention(4, 4, 9), noise(9, 6), phrases, (5, 7), settings
        )
        torch.testing.assert_close(found, n)


def test_more_attention_to_a_phrase_means_less_of_the_map():
    n, maps = torch.full((4, 4), 0.3), attention(4, 4, 9)
    more = maps.clone()
    more[1, 2] = torch.eye(9)[1]
    settings = ControlMap(gain=1, distance="constant")
    both = [control_map.fine_control(n, m, m, noise(9, 6), [(1, 3)], (5, 7), settings)[0] for m in (maps, more)]
    assert both[1][1, 2] == 0 < both[0][1, 2] and torch.equal(both[0][0], both[1][0])


def test_no_gradient_goes_through_the_map():
    response = noise(1, 4, 4, 4).requires_grad_(True)
    maps = attention(4, 4, 9).requires_grad_(True)
    n = control_map.difference(response, noise(1, 4, 4, 4, seed=1))[0]
    found, *_ = control_map.fine_control(n, maps, maps, noise(9, 6), [(1, 3)], (5, 7), ControlMap())
    assert not n.requires_grad and not found.requires_grad


def test_maps_come_to_a_coarser_grid_by_means_and_keep_their_sum():
    maps = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    coarse = control_map.resized(maps, (4, 4))
    np.testing.assert_allclose(coarse[1, 2, 3], maps[1, 4:6, 6:8].numpy().mean(), rtol=1e-6)
    assert control_map.resized(maps, (16, 16)).shape == (2, 16, 16)


@pytest.mark.parametrize("blur", [0, 2, -3])
def test_blur_that_has_no_middle_is_refused(blur):
    with pytest.raises(ValueError, match=rf"^blur is {blur}, but must be an odd number[^.]*: 1, 3, 5, …\.$"):
        ControlMap(blur=blur).check()


# Eq. 4 to 6


def columns(*numbers: int, count: int = 8) -> torch.Tensor:
    return torch.isin(torch.arange(count), torch.tensor(numbers))[None]


def test_text_consistent_compares_base_columns_alone_and_the_rest_as_one():
    response, reference = attention(1, 6, 8), attention(1, 6, 8, seed=1)
    gate = torch.rand(1, 6, generator=torch.Generator().manual_seed(2))
    a, b, s = (each[0].numpy().astype(np.float64) for each in (response, reference, gate))
    change, size = 0.0, 0.0
    for place in range(6):
        rest_a, rest_b = a[place, 5:].sum(), b[place, 3:].sum()
        squared = sum((a[place, c] - b[place, c]) ** 2 for c in (1, 2)) + (rest_a - rest_b) ** 2
        change += (1 - s[place]) * squared
        size += sum(b[place, c] ** 2 for c in (1, 2)) + rest_b**2
    rest = columns(5, 6, 7), columns(3, 4, 5, 6, 7)
    found = align.text_consistent(response, reference, gate, columns(1, 2), rest)
    assert float(found) == pytest.approx(change / size, rel=1e-5)


def test_a_longer_text_costs_nothing_where_nobody_looks_at_it():
    """The same attention, with one column more for a target at which no place looks."""
    reference = attention(1, 6, 8)
    reference[..., 7] = 0  # the last column is to make room
    response = torch.cat([reference[..., :3], torch.zeros(1, 6, 1), reference[..., 3:7]], -1)
    rest = columns(4, 5, 6, 7), columns(3, 4, 5, 6, 7)
    found = align.text_consistent(response, reference, torch.zeros(1, 6), columns(1, 2), rest)
    assert float(found) < 1e-12


def test_fine_grained_is_the_relative_change_of_the_queries():
    response, reference = noise(2, 6, 5), noise(2, 6, 5, seed=1)
    gate = torch.rand(2, 6, generator=torch.Generator().manual_seed(2))
    expected = [
        sum((1 - gate[k, i]) * ((response[k, i] - reference[k, i]) ** 2).sum() for i in range(6))
        / (reference[k] ** 2).sum()
        for k in range(2)
    ]
    torch.testing.assert_close(align.fine_grained(response, reference, gate), torch.stack(expected))


def test_relative_terms_do_not_hang_on_scale_or_width():
    response, reference, gate = noise(1, 6, 5), noise(1, 6, 5, seed=1), torch.zeros(1, 6)
    once = align.fine_grained(response, reference, gate)
    torch.testing.assert_close(align.fine_grained(100 * response, 100 * reference, gate), once)
    twice = [torch.cat([each, each], -1) for each in (response, reference)]
    torch.testing.assert_close(align.fine_grained(*twice, gate), once)


def test_where_the_gate_is_open_a_change_costs_nothing_and_elsewhere_its_slope_is_right():
    reference = noise(1, 6, 5, seed=1).double()
    response = noise(1, 6, 5).double().requires_grad_(True)
    gate = torch.tensor([[0.0, 0.3, 1.0, 1.0, 0.0, 0.7]]).double()
    (slope,) = torch.autograd.grad(align.fine_grained(response, reference, gate).sum(), response)
    assert slope[0, 2:4].abs().max() == 0 and slope[0, 0].abs().max() > 0
    moved = response.detach().clone()
    for place, number in ((0, 2), (1, 4), (5, 0)):
        values = []
        for step in (1e-3, -1e-3):
            moved[0, place, number] += step
            values.append(float(align.fine_grained(moved, reference, gate)))
            moved[0, place, number] -= step
        # the terms are computed in single precision
        assert (values[0] - values[1]) / 2e-3 == pytest.approx(float(slope[0, place, number]), rel=2e-2, abs=1e-4)


def test_the_gate_comes_to_each_layers_grid_by_means():
    gate = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = align.at_layer(gate, (4, 4)).view(4, 4)
    assert float(found[1, 3]) == pytest.approx(float(gate[0, 2:4, 6:8].mean()), rel=1e-6)


# Eq. 10 and 11


def test_enhancement_is_the_angle_between_two_differences():
    predicted, shown, phrase = noise(3, 7), noise(3, 7, seed=1), noise(7, seed=2)
    expected = []
    for row in range(3):
        unit = [np.asarray(v) / np.linalg.norm(v) for v in (predicted[row].numpy(), shown[row].numpy(), phrase.numpy())]
        one, other = unit[0] - unit[2], unit[1] - unit[2]
        expected.append(1 - one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    found = enhance.response_enhancement(predicted, shown, phrase)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_enhancement_is_met_by_the_training_picture_and_direct_supervision_is_not():
    shown, phrase = noise(1, 7), noise(7, seed=2)
    assert float(enhance.response_enhancement(2 * shown, shown, phrase)) == pytest.approx(0, abs=1e-6)
    assert float(enhance.direct(shown, phrase)) > 0.1


def test_one_step_picture_undoes_the_noise():
    x0, eps, sigma = noise(2, 4, 3, 3), noise(2, 4, 3, 3, seed=1), torch.tensor([0.3, 7.0])
    x = x0 + sigma.view(-1, 1, 1, 1) * eps
    torch.testing.assert_close(enhance.one_step_picture(x, eps, sigma), x0, rtol=1e-4, atol=1e-5)


def test_enhancement_counts_between_400_and_800():
    assert (
        enhance.counted(torch.tensor([0, 399, 400, 800, 801, 999]), 1000).tolist()
        == [False, False, True, True] + [False] * 2
    )


# Eq. 2 and 12


def test_min_snr_is_its_definition():
    sigma = torch.tensor([0.1, 0.4, 1.0, 14.0])
    expected = [min(1 / s**2, 5) / (1 / s**2) for s in sigma.tolist()]
    np.testing.assert_allclose(objective.weight(sigma, "min_snr").numpy(), expected, rtol=1e-5)
    assert objective.weight(sigma, "uniform").tolist() == [1, 1, 1, 1]


def test_balance_gives_each_gradient_its_share():
    norms = {"denoising": 0.005, "tc": 0.1, "fg": 0.2, "enh": 0.0}
    factors = objective.balanced(norms, {"tc": 1.0, "fg": 0.5, "enh": 1.0})
    assert math.isclose(factors["tc"] * 0.1, 0.005) and math.isclose(factors["fg"] * 0.2, 0.0025)
    assert factors["enh"] == 0.0
    terms = {name: torch.tensor(float(i)) for i, name in enumerate(norms, 1)}
    assert float(objective.objective(terms, factors)) == pytest.approx(1 + 2 * 0.05 + 3 * 0.0125)
