"""Eq. 7 and 8 against naive loops."""

import math

import pytest
import torch
from omniportrait.guidance.omniportrait import match as matching


def rows(n, c, seed):
    return torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_nearest(reference, generated):
    return [min(range(len(generated)), key=lambda j, r=r: math.dist(r, generated[j])) for r in reference.tolist()]


def test_nearest_against_a_loop():
    reference, generated = rows(23, 6, 0), rows(17, 6, 1) * 1.7
    assert matching.nearest(reference, generated).tolist() == naive_nearest(reference, generated.tolist())


def test_nearest_is_euclidean_not_cosine():
    """A point in the same direction but far away must lose to a nearer one."""
    reference = torch.tensor([[1.0, 0.0]])
    generated = torch.tensor([[10.0, 0.0], [0.8, 0.6]])
    assert matching.nearest(reference, generated).tolist() == [1]


def test_nearest_has_no_gradient():
    generated = rows(5, 3, 2).requires_grad_(True)
    assert not matching.nearest(rows(4, 3, 3), generated).requires_grad


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_similarity_against_a_loop(reduction):
    reference, generated = rows(9, 4, 4), rows(7, 4, 5)
    match = naive_nearest(reference, generated.tolist())
    total = 0.0
    for r, j in zip(reference.tolist(), match, strict=True):
        g = generated[j].tolist()
        cosine = sum(a * b for a, b in zip(r, g, strict=True)) / (math.hypot(*r) * math.hypot(*g))
        total += (cosine + 1) / 2
    expected = total / len(reference) if reduction == "mean" else total
    got = matching.similarity(reference, generated, torch.tensor(match), reduction)
    assert float(got) == pytest.approx(expected, rel=1e-12)


def test_mean_does_not_care_how_often_points_repeat():
    """The sum grows with the face, the mean does not."""
    reference, generated = rows(6, 4, 6), rows(8, 4, 7)
    tiled = reference.repeat(5, 1)
    match, tiled_match = matching.nearest(reference, generated), matching.nearest(tiled, generated)
    mean = [float(matching.similarity(r, generated, m, "mean")) for r, m in ((reference, match), (tiled, tiled_match))]
    total = [float(matching.similarity(r, generated, m, "sum")) for r, m in ((reference, match), (tiled, tiled_match))]
    assert mean[0] == pytest.approx(mean[1], rel=1e-12)
    assert total[1] == pytest.approx(5 * total[0], rel=1e-12)


def test_the_most_alike_of_several_photographs_against_a_loop():
    generated = rows(11, 4, 6)
    photographs = [rows(n, 4, seed) for n, seed in ((5, 7), (9, 8), (3, 9))]

    def mean(reference):
        match = naive_nearest(reference, generated.tolist())
        cosines = [
            torch.nn.functional.cosine_similarity(generated[j], r, dim=0) for r, j in zip(reference, match, strict=True)
        ]
        return float(sum((1 + cosine) / 2 for cosine in cosines)) / len(match)

    best = max(photographs, key=mean)
    for order in (photographs, photographs[::-1]):
        reference, match = matching.most_alike(order, generated)
        assert reference is best and match.tolist() == naive_nearest(best, generated.tolist())
