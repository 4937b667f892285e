"""The demo's autoencoder and the weights of its loss, against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omniportrait.demo import autoencoder
from omniportrait.lab.learning import loop, pictures, reconstruction
from omniportrait.training.loop import learning_rate


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = autoencoder.PortraitAutoencoder(wide=8, deep=12, fine=4, wide_blocks=(1, 1), deep_blocks=(1, 2)).eval()
    for parameter in model.parameters():  # residual branches start at zero: wake them up
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_an_eighth_of_the_size_and_back(small):
    latents = small.encode(torch.zeros(2, 3, 64, 40))
    assert latents.shape == (2, 4, 8, 5)
    assert small.decode(latents).shape == (2, 3, 64, 40)


def test_the_shape_is_read_from_the_weights(small):
    again = autoencoder.PortraitAutoencoder.shaped_like(small.state_dict())
    again.load_state_dict(small.state_dict())
    picture = torch.rand(1, 3, 32, 32)
    assert torch.equal(again.encode(picture), small.encode(picture))
    assert autoencoder.is_ours(small.state_dict()) and not autoencoder.is_ours({"decoder.conv_in.weight": None})


def test_folded_statistics_are_those_of_the_latents(small):
    picture = torch.rand(4, 3, 64, 64)
    before = small.encode(picture)
    mean, deviation = before.mean((0, 2, 3)), before.std((0, 2, 3))
    folded = autoencoder.PortraitAutoencoder.shaped_like(small.state_dict())
    folded.load_state_dict(small.state_dict())
    folded.fold_statistics(mean, deviation)
    wanted = (before - mean.view(-1, 1, 1)) / deviation.view(-1, 1, 1)
    torch.testing.assert_close(folded.encode(picture), wanted, rtol=1e-3, atol=1e-4)


def test_the_weighted_loss_against_a_loop():
    random = torch.Generator().manual_seed(1)
    difference = torch.randn(1, 3, 8, 8, generator=random)
    weights = torch.rand(1, 1, 8, 8, generator=random) + 0.1
    d, w = difference[0].numpy(), weights[0, 0].numpy()

    def mean(cells):
        top = sum(abs(value) * weight for value, weight in cells)
        return top / sum(weight for _, weight in cells)

    points = [(c, y, x) for c in range(3) for y in range(8) for x in range(8)]
    exact = mean([(d[c, y, x], w[y, x]) for c, y, x in points])
    across = mean([(d[c, y, x] - d[c, y, x - 1], w[y, x]) for c, y, x in points if x])
    down = mean([(d[c, y, x] - d[c, y - 1, x], w[y, x]) for c, y, x in points if y])
    blocks = [(c, slice(y, y + 4), slice(x, x + 4)) for c in range(3) for y in (0, 4) for x in (0, 4)]
    coarse = mean([(d[block].mean(), w[block[1:]].mean()) for block in blocks])
    found = reconstruction.weighted_loss(difference, weights)
    assert float(found) == pytest.approx(exact + across + down + 0.5 * coarse, rel=1e-5)


def test_faces_and_marks_weigh_more():
    labels = np.zeros((20, 20), np.uint8)
    labels[4:16, 4:16] = pictures.SKIN
    pictures.mark_details(labels, [{"x": 9.0, "y": 10.0, "radius": 1.0}, {"x": 2.0, "y": 2.0, "visible": False}])
    near = np.hypot(*(np.mgrid[:20, :20] - np.array([10.0, 9.0])[:, None, None])) <= 3.0
    assert ((labels & pictures.NEAR_DETAIL > 0) == near).all()
    weights = pictures.pixel_weights(torch.from_numpy(labels)[None])[0, 0].numpy()
    assert weights[0, 0] == 1.0 and weights[10, 9] == pictures.FINE_WEIGHT
    assert weights[15, 15] == pictures.FACE_WEIGHT and weights[17, 17] == pictures.FACE_WEIGHT and weights[18, 18] == 1


def test_every_sample_is_seen_once_an_epoch_whatever_the_batch():
    seen = torch.cat([loop.batch_indices(10, 4, step, seed=3) for step in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10)) and sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_the_learning_rate_ends_low_whatever_the_pieces():
    rates = [learning_rate(share, step, peak=1.0, warmup=10) for step, share in enumerate(np.linspace(0, 1, 101))]
    assert rates[0] == pytest.approx(0.1) and max(rates) < 1 and rates[-1] == pytest.approx(0.01)
    assert all(later < earlier for earlier, later in zip(rates[12:], rates[13:], strict=False))


def test_roughness_of_known_latents():
    """A constant has none, a ramp half its slope squared, white noise twice its variance."""
    assert float(reconstruction.roughness(torch.full((1, 4, 8, 8), 3.0))) == 0
    ramp = torch.arange(8.0).mul(0.5).expand(1, 4, 8, 8)
    assert float(reconstruction.roughness(ramp)) == 0.125
    noise = torch.randn(1, 4, 256, 256, generator=torch.Generator().manual_seed(0))
    assert float(reconstruction.roughness(noise)) == pytest.approx(2, rel=0.02)
