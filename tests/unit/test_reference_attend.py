"""Attention over a picture's own and a reference's tokens, against copies of the tokens and against sums by hand."""

from __future__ import annotations

import pytest
import torch
from omniportrait.guidance.reference_attention.attend import reference_bias, tokens_inside
from omniportrait.guidance.reference_attention.settings import Settings


def attention(q, k, v, bias=None):
    """Written out in float64, one head: [B, N, C]."""
    logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    if bias is not None:
        logits = logits + bias[:, 0].double()
    return logits.softmax(-1) @ v


@pytest.fixture
def tokens():
    """q, k, v of two pictures of six tokens, and of two references of three and two."""
    random = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, 8, generator=random, dtype=torch.float64) for n in (6, 6, 6, 3, 3, 2, 2)]


@pytest.mark.parametrize("times", [1, 2, 5])
def test_strength_counts_the_reference_so_often(tokens, times):
    q, k, v, ref_k, ref_v, *_ = tokens
    bias = reference_bias(None, [[3]], float(times), own=6)
    found = attention(q, torch.cat([k, ref_k], 1), torch.cat([v, ref_v], 1), bias)
    copies = attention(q, torch.cat([k, *[ref_k] * times], 1), torch.cat([v, *[ref_v] * times], 1))
    torch.testing.assert_close(found, copies, rtol=1e-6, atol=1e-6)
    assert (bias is None) == (times == 1)


def test_several_photographs_weigh_as_much_as_one(tokens):
    """The share of attention that goes to the reference: that of the mean of what each would weigh alone."""
    q, k, _, first, _, second, _ = tokens
    bias = reference_bias(None, [[3, 2]], 1.5, own=6)
    logits = q @ torch.cat([k, first, second], 1).transpose(1, 2) / q.shape[-1] ** 0.5
    found = (logits + bias[:, 0].double()).softmax(-1)[..., 6:].sum(-1)
    weights = [(q @ each.transpose(1, 2) / q.shape[-1] ** 0.5).exp().sum(-1) for each in (k, first, second)]
    reference = 1.5 * (weights[1] + weights[2]) / 2
    torch.testing.assert_close(found, reference / (weights[0] + reference), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_photograph_given_four_times_is_that_photograph(tokens, hidden):
    """Of two people, who have one photograph and four: all tokens see both, or each token one of them."""
    q, k, v, first_k, first_v, second_k, second_v = tokens
    inside = torch.eye(2, dtype=torch.bool).repeat(1, 3)[None] if hidden else None
    once = reference_bias(inside, [[3], [2]], 0.7, own=6)
    often = reference_bias(inside, [[3], [2, 2, 2, 2]], 0.7, own=6)
    torch.testing.assert_close(
        attention(q, torch.cat([k, first_k, *[second_k] * 4], 1), torch.cat([v, first_v, *[second_v] * 4], 1), often),
        attention(q, torch.cat([k, first_k, second_k], 1), torch.cat([v, first_v, second_v], 1), once),
        rtol=1e-6,
        atol=1e-6,
    )


def test_each_token_sees_its_own_person_only(tokens):
    """A token inside nobody is as without references, one inside a person as if there were that person alone."""
    q, k, v, first_k, first_v, second_k, second_v = tokens
    inside = torch.zeros(2, 2, 6, dtype=torch.bool)
    inside[0, 0, :2], inside[0, 1, 2:4], inside[1, 1, 5] = True, True, True
    bias = reference_bias(inside, [[3], [2]], 1.5, own=6)
    found = attention(q, torch.cat([k, first_k, second_k], 1), torch.cat([v, first_v, second_v], 1), bias)
    plain = attention(q, k, v)
    alone = [
        attention(q, torch.cat([k, kk], 1), torch.cat([v, vv], 1), reference_bias(None, [[len(kk[0])]], 1.5, own=6))
        for kk, vv in ((first_k, first_v), (second_k, second_v))
    ]
    for picture in range(2):
        for token in range(6):
            person = next((p for p in range(2) if inside[picture, p, token]), None)
            expected = plain if person is None else alone[person]
            torch.testing.assert_close(found[picture, token], expected[picture, token], rtol=1e-6, atol=1e-6)


def test_tokens_count_from_their_share_on():
    mask = torch.zeros(1, 8, 8)
    mask[0, :4, :4], mask[0, 4:, 4] = 1, 1  # one whole cell of 2x2; a quarter of another
    assert tokens_inside(mask, (2, 2)).tolist() == [[True, False, False, False]]
    assert tokens_inside(mask, (2, 2), share=0.25).tolist() == [[True, False, False, True]]


@pytest.mark.parametrize("values", [{"strength": 0.0}, {"start_percent": 0.5, "end_percent": 0.5}])
def test_off(values):
    assert Settings(**values).off and not Settings().off


@pytest.mark.parametrize("values", [{"where": "everywhere"}, {"levels": "coarse"}])
def test_wrong_choices_are_named(values):
    with pytest.raises(ValueError, match="Reference Attention has no .*; choose .* or"):
        Settings(**values)
