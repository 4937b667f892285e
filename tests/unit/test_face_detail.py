"""A face cut out to be painted anew, and put back: against SciPy, closed forms and pixel-by-pixel counts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy
import pytest
import torch
from omniportrait.models.faces.crop import square_around
from omniportrait.models.faces.detail import Cut, cut_out, put_back, softened
from scipy import ndimage


def disc(side: int = 64, radius: int = 12) -> torch.Tensor:
    places = torch.arange(side) - side / 2
    return ((places[:, None].square() + places[None].square()) < radius**2).float()


@pytest.mark.parametrize(("grow", "feather"), [(0, 0.0), (3, 0.0), (0, 6.0), (4, 5.0)])
def test_a_softened_mask(grow, feather):
    mask = disc().numpy()
    if grow:
        mask = ndimage.grey_dilation(mask, size=2 * grow + 1)
    if feather:
        mask = ndimage.gaussian_filter(mask, feather / 2, truncate=3.0, mode="nearest")
    numpy.testing.assert_allclose(softened(disc(), grow, feather).numpy(), mask, atol=1e-5)


def test_only_the_mask_changes():
    """Painted white over grey: the picture is lighter by the mask's share, and elsewhere the same to the bit."""
    picture = torch.rand(1, 90, 120, 3, generator=torch.Generator().manual_seed(1)) / 2
    cut = Cut(torch.zeros(1, 64, 64, 3), softened(disc(), 2, 4.0), (20, 10, 84, 74))
    whole, mask = put_back(picture, torch.ones(1, 64, 64, 3), cut)
    assert torch.equal(mask[0, 10:74, 20:84], cut.mask) and mask.count_nonzero() == cut.mask.count_nonzero()
    outside = mask[0] == 0
    assert torch.equal(whole[0][outside], picture[0][outside]) and outside.float().mean() > 0.5
    torch.testing.assert_close(whole[0], picture[0] + (1 - picture[0]) * mask[0, ..., None])


@pytest.mark.parametrize("box", [(40, 30, 20, 24), (0, 0, 30, 30), (100, 70, 20, 20)])
def test_what_was_cut_out_comes_back(box):
    """Unchanged, at its own size or enlarged, in the middle of the picture and at its border."""
    smooth = torch.linspace(0, 1, 120)[None, :, None] * torch.linspace(0.2, 1, 90)[:, None, None]
    picture = smooth.expand(90, 120, 3)[None].clone()
    photo_mask = torch.zeros(1, 90, 120)
    x, y, width, height = box
    photo_mask[:, y : y + height, x : x + width] = 1
    side = square_around((x, y, x + width, y + height), 2.0)
    for size in (side[2] - side[0], 256):
        cut = cut_out(picture, SimpleNamespace(boxes=(box,), photo_mask=photo_mask), size, 2.0, 0.0, 0.0)
        assert cut.crop.shape == (1, size, size, 3) and cut.box == side
        whole, mask = put_back(picture, cut.crop, cut)
        torch.testing.assert_close(whole, picture, atol=0.01, rtol=0)
        assert (mask[0] - photo_mask[0]).abs().mean() < 0.02
