"""Intervals over people, against closed forms."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from omniportrait.evaluation.intervals import bootstrap, difference_of, mean_of


@pytest.mark.parametrize(("ones", "people"), [(6, 20), (7, 20), (36, 40)])
def test_resampled_ones_are_binomial(ones, people):
    """The mean of n draws from k ones among N values is Binomial(n, k/N)/n, whose quantiles are known exactly."""
    share, drawn = ones / people, people - 1
    chance = np.cumsum([comb(drawn, k) * share**k * (1 - share) ** (drawn - k) for k in range(drawn + 1)])
    expected = [int((chance < point).sum()) / drawn for point in (0.025, 0.975)]
    assert min(abs(chance - 0.025).min(), abs(chance - 0.975).min()) > 0.005  # 3 deviations of what 10,000 draws give
    found = bootstrap([1.0] * ones + [0.0] * (people - ones))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.mean == pytest.approx(share) and found.people == people


def test_many_values_are_normal():
    """For many people the interval is the mean and 1.96 standard errors."""
    values = np.random.default_rng(0).normal(3.0, 1.0, 500)
    found = bootstrap(values)
    error = values.std() / len(values) ** 0.5
    assert (found.low, found.high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), 2e-3)


def test_few_values_have_the_unbiased_error():
    """Half the width is 1.96 standard errors with n - 1 in them; with n it would be 7% less for eight people."""
    random = np.random.default_rng(1)
    sets = random.normal(0.0, 1.0, (200, 8))
    widths = [(found.high - found.low) / 2 / each.std(ddof=1) for each in sets if (found := bootstrap(each, 2000))]
    assert np.mean(widths) * 8**0.5 == pytest.approx(1.96, rel=0.03)


def rows(*values):
    return [{"person": person, "prompt": prompt, "x": value} for person, prompt, value in values]


def test_people_count_alike_however_many_pictures_they_have():
    found = mean_of(rows((1, 0, 0.0), (1, 1, 0.0), (1, 2, 0.0), (2, 0, 1.0), (3, 0, None)), "x")
    assert found.mean == 0.5 and found.people == 2 and (found.low, found.high) == (0.0, 1.0)


def test_a_difference_is_of_pairs_alone():
    """A constant gain under large spread between people is certain; unpaired rows and missing values do not count."""
    base = rows((1, 0, 5.0), (2, 0, -40.0), (3, 0, 700.0), (4, 0, None), (1, 1, 9.0))
    other = rows((1, 0, 5.5), (2, 0, -39.5), (3, 0, 700.5), (4, 0, 3.0), (2, 1, 1.0))
    found = difference_of(other, base, "x")
    assert (found.mean, found.low, found.high, found.people) == (0.5, 0.5, 0.5, 3) and found.significant
    assert not difference_of(base, base, "x").significant
    assert difference_of(base, [], "x") is None
