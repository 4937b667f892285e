"""Eq. 9 to 11: the energy's gradient against finite differences, its sign, its mask and its limit."""

import pytest
import torch
from omniportrait.guidance.omniportrait import guide as E
from omniportrait.guidance.omniportrait.match import nearest, similarity
from omniportrait.guidance.omniportrait.settings import Settings

P = 8.5


class Net(torch.nn.Module):
    """A small differentiable stand-in for the UNet: [1, 4, h, w] latent to [1, C, h, w] features."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.a = torch.randn(8, 4, 3, 3, generator=generator, dtype=torch.float64) * 0.4
        self.b = torch.randn(6, 8, 1, 1, generator=generator, dtype=torch.float64) * 0.6

    def forward(self, z):
        return torch.nn.functional.conv2d(torch.tanh(torch.nn.functional.conv2d(z, self.a, padding=1)), self.b)


@pytest.fixture
def world():
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(1, 4, 6, 6, generator=generator, dtype=torch.float64)
    reference = torch.randn(11, 6, generator=generator, dtype=torch.float64)
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[1:5, 2:5] = True
    return Net(), z, reference, mask


def feature_energy(reference, features, mask, reduction="mean"):
    """The same by the functions under test."""
    points = features.permute(1, 2, 0)[mask]
    return E.energy(similarity(reference, points, nearest(reference, points), reduction), P)


def double_energy(reference, features, mask, reduction="mean"):
    """Eq. 7 to 10 in float64, written out."""
    points = features.permute(1, 2, 0)[mask]
    match = torch.cdist(reference, points.detach()).argmin(dim=1)
    halves = (torch.nn.functional.cosine_similarity(points[match], reference) + 1) / 2
    return P / (1 + (halves.mean() if reduction == "mean" else halves.sum()))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_against_finite_differences(world, reduction):
    net, z, reference, mask = world
    leaf = z.clone().requires_grad_(True)
    value = feature_energy(reference, net(leaf)[0], mask, reduction)
    gradient = torch.autograd.grad(value, leaf)[0]
    assert float(value.detach()) == pytest.approx(
        float(double_energy(reference, net(z)[0], mask, reduction)), rel=1e-12
    )
    h = 1e-6
    for index in [(0, 0, 2, 3), (0, 1, 1, 2), (0, 3, 4, 4), (0, 2, 3, 2), (0, 0, 0, 0)]:
        step = torch.zeros_like(z)
        step[index] = h
        up = double_energy(reference, net(z + step)[0], mask, reduction)
        down = double_energy(reference, net(z - step)[0], mask, reduction)
        assert float(gradient[index]) == pytest.approx(float((up - down) / (2 * h)), rel=2e-5, abs=1e-9)


def ddim_step(z, noise_prediction, abar=0.3, abar_next=0.5):
    """Eq. 1 and 2."""
    z0 = (z - (1 - abar) ** 0.5 * noise_prediction) / abar**0.5
    return abar_next**0.5 * z0 + (1 - abar_next) ** 0.5 * noise_prediction


@pytest.mark.parametrize("sign, rises", [(+1, True), (-1, False)])
def test_adding_the_gradient_raises_the_similarity(world, sign, rises):
    """Eq. 11 as printed: one guided step ends more similar than the plain one, the opposite sign less."""
    net, z, reference, mask = world
    leaf = z.clone().requires_grad_(True)
    gradient = torch.autograd.grad(double_energy(reference, net(leaf)[0], mask), leaf)[0]
    noise_prediction = torch.zeros_like(z)
    plain = double_energy(reference, net(ddim_step(z, noise_prediction))[0], mask)
    guided = double_energy(reference, net(ddim_step(z, noise_prediction + sign * 0.05 * gradient))[0], mask)
    assert bool(guided < plain) == rises  # lower energy is higher S


def test_masking_the_background_lets_nothing_out():
    """Eq. 9: outside of the mask there is 0, also where the gradient is not finite."""
    gradient = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(6))
    gradient[1, :, 0] = float("nan")
    mask = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    mask[:, :, 2:, 1:4] = True
    expected = torch.zeros_like(gradient)
    expected[:, :, 2:, 1:4] = gradient[:, :, 2:, 1:4]
    assert torch.equal(E.masked(gradient, mask), expected)


def test_the_step_adds_the_gradient_to_the_noise_prediction():
    """Eq. 11, from x = x0 + sigma epsilon."""
    x, noise, gradient = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64)
    sigma = torch.tensor([0.5, 2.0], dtype=torch.float64)
    per_picture = sigma.view(-1, 1, 1, 1)
    guided = E.step(x - per_picture * noise, sigma, gradient)
    torch.testing.assert_close((x - guided) / per_picture, noise + gradient)


def test_the_window_is_the_low_noise_end():
    assert [E.in_window(t, 0.6) for t in (999, 601, 600, 599, 0)] == [False, False, True, True, True]
    assert not E.in_window(600, 0.0)


def test_masked_rms_against_a_loop():
    values = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(2))
    mask = (torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(3)) > 0.5).float()
    for b in range(2):
        inside = [float(values[b, c, y, x]) for c in range(3) for y in range(4) for x in range(5) if mask[b, 0, y, x]]
        expected = (sum(v * v for v in inside) / len(inside)) ** 0.5
        assert float(E.masked_rms(values, mask)[b]) == pytest.approx(expected, rel=1e-5)


def test_limit_caps_each_picture_on_its_own():
    gradient = torch.ones(2, 4, 3, 3)
    gradient[1] *= 0.01
    yardstick, mask = torch.ones(2, 4, 3, 3), torch.ones(2, 1, 3, 3)
    capped = E.limit(gradient, yardstick, mask, 0.3)
    torch.testing.assert_close(capped[0], torch.full((4, 3, 3), 0.3))
    assert capped[1].equal(gradient[1])
    assert E.limit(gradient, yardstick, mask, 0.0) is gradient


def test_a_limit_that_is_not_finite_leaves_only_nothing():
    """Such a picture is lost, and says so, but for where there is nothing to limit."""
    gradient = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).view(2, 1, 1, 2)
    for bad in (float("inf"), float("nan")):
        yardstick = torch.tensor([[bad, 1.0], [1.0, 1.0]]).view(2, 1, 1, 2)
        lost, kept = E.limit(gradient, yardstick, torch.ones(2, 1, 1, 2), 0.3)
        assert lost.isnan().tolist() == [[[True, False]]]
        assert kept.flatten().tolist() == pytest.approx([0.3 * 2**0.5, 0.0])


def test_limit_of_nothing_is_nothing():
    nothing = torch.zeros(1, 4, 3, 3)
    assert E.limit(nothing, torch.ones_like(nothing), torch.zeros(1, 1, 3, 3), 0.3).eq(0).all()


@pytest.mark.parametrize("choice", [{"refinement": "middle"}, {"reduction": "max"}, {"checkpointing": "yes"}])
def test_unknown_choices_are_refused_with_the_choices(choice):
    with pytest.raises(ValueError, match="; choose .* or "):
        Settings(**choice)


def test_nobody_is_absent_where_noise_hides_them():
    assert Settings(presence=0.4).at(600.0).presence == Settings(presence=0.4).at(0.0).presence == 0.4
    assert Settings(presence=0.4).at(601.0) == Settings(presence=0.0)


def test_literal_mode_is_the_printed_equations():
    """Sum, no gain, no clip, no sqrt(1 - abar), a gradient of its own at every step; everything else as set."""
    literal = Settings(every=3, p=3.0, gain=99.0, clip=0.2, sigma_scale=True).in_mode("literal")
    assert (literal.reduction, literal.gain, literal.clip) == ("sum", 1.0, 0.0)
    assert (literal.sigma_scale, literal.every, literal.p) == (False, 1, 3.0)
    assert literal.presence == 0 < Settings().presence
    assert Settings(gain=99.0).in_mode("calibrated") == Settings(gain=99.0)
    with pytest.raises(ValueError, match="calibrated or literal"):
        Settings().in_mode("strong")


@pytest.mark.parametrize(
    ("t", "constant", "fade_in"),
    [(601, 0, 0), (600, 1, 0), (500, 1, 0.25), (400, 1, 0.5), (300, 1, 0.75), (200, 1, 1), (199, 0, 0)],
)
def test_the_weight_over_a_window(t, constant, fade_in):
    """From 600 down to 200: a line through 0 and 1, and its mirror image."""
    assert E.weight_at(t, 600, 200, "constant") == constant
    assert E.weight_at(t, 600, 200, "fade in") == fade_in
    assert E.weight_at(t, 600, 200, "fade out") == constant - fade_in


def test_a_window_of_one_timestep():
    assert [E.weight_at(t, 300, 300, "fade in") for t in (301, 300, 299)] == [0, 1, 0]


def test_weight_multiplies_what_is_added(world):
    _, z, _, mask = world
    arguments = z, torch.ones(1), 2 * z, mask[None, None].double(), Settings()
    torch.testing.assert_close(E.scaled(*arguments, 0.25), E.scaled(*arguments) / 4)
    assert torch.equal(E.scaled(*arguments, 1.0), E.scaled(*arguments))
