"""Geometry of the square crop, against closed forms and pixel-by-pixel loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from omniportrait.models.faces import crop as crop_module
from omniportrait.models.faces.crop import MAX_SIDE, MIN_SIDE, crop_square, inside, paste, square_around, take

coordinate = st.floats(-500, 500, allow_nan=False)
length = st.floats(1, 400)


@given(coordinate, coordinate, length, length, st.floats(1, 6))
def test_square_is_centred_and_as_large_as_asked(x, y, width, height, factor):
    x0, y0, x1, y1 = square_around((x, y, x + width, y + height), factor)
    assert all(isinstance(value, int) for value in (x0, y0, x1, y1))
    assert x1 - x0 == y1 - y0
    assert abs((x1 - x0) - factor * max(width, height)) <= 0.5 + 1e-6
    assert abs((x0 + x1) / 2 - (x + width / 2)) <= 0.5 + 1e-6
    assert abs((y0 + y1) / 2 - (y + height / 2)) <= 0.5 + 1e-6


@pytest.mark.parametrize("box", [(1, 2, 4, 5), (-3, -2, 4, 5), (3, 1, 11, 9), (-20, -20, -15, -15), (30, 0, 33, 3)])
def test_take_copies_pixels_and_repeats_the_border(box):
    picture = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(1))
    got = take(picture, box)
    for row in range(box[3] - box[1]):
        for column in range(box[2] - box[0]):
            y = min(max(box[1] + row, 0), 5)
            x = min(max(box[0] + column, 0), 6)
            assert torch.equal(got[:, row, column], picture[:, y, x])


def test_crop_at_native_resolution_is_the_photograph_itself():
    photo = torch.rand(3, 400, 500, generator=torch.Generator().manual_seed(2))
    crop = crop_square(photo, (120, 60, 420, 360))
    assert torch.equal(crop, photo[:, 60:360, 120:420])


def test_crop_reaching_out_repeats_the_edge_and_is_never_black():
    photo = torch.rand(3, 300, 300, generator=torch.Generator().manual_seed(3)) * 0.5 + 0.5
    crop = crop_square(photo, (-50, -40, 350, 360))
    assert torch.equal(crop[:, 40:340, 50:350], photo)
    assert torch.equal(crop[:, 40:340, 0], photo[:, :, 0])
    assert torch.equal(crop[:, -1, 50:350], photo[:, -1])
    assert float(crop.min()) >= 0.5


@pytest.mark.parametrize(("side", "expected"), [(40, 256), (256, 256), (999, 999), (1600, 1024), (5000, 1024)])
def test_side_is_bounded(side, expected):
    assert crop_square(torch.rand(3, 64, 80), (-7, -9, side - 7, side - 9)).shape == (3, expected, expected)


@pytest.mark.parametrize("side", [1500, 3000, 4700])
def test_a_shrunk_crop_of_a_ramp_is_the_same_ramp(side):
    """The value of each crop pixel of a linear picture is the line at that pixel's centre, whatever the averaging."""
    height, width = 5000, 5200
    photo = (torch.arange(width) + 0.5).div(width).expand(1, height, width)
    crop = crop_square(photo, (300, 200, 300 + side, 200 + side))[0, 512]
    line = (300 + (torch.arange(MAX_SIDE) + 0.5) * side / MAX_SIDE) / width
    slack = 2.5 * max(1, side // (2 * MAX_SIDE)) / width  # whole blocks: the box may move by half a block on each side
    assert float((crop - line)[8:-8].abs().max()) < slack


@pytest.mark.parametrize(("box", "photo_side"), [((-9000, -9000, 40_000, 40_000), 4000), ((0, 0, 7680, 7680), 7680)])
def test_memory_is_bounded_however_large_the_crop(monkeypatch, box, photo_side):
    asked = []
    monkeypatch.setattr(crop_module, "take", lambda picture, part: asked.append(part) or take(picture, part))
    crop_square(torch.zeros(1, photo_side, photo_side), box)
    assert asked[0][2] - asked[0][0] <= 4 * MAX_SIDE


@pytest.mark.parametrize("box", [(-30, 20, 40, 90), (10, 10, 20, 20), (50, 50, 150, 150), (-200, -200, -100, -100)])
@pytest.mark.parametrize("side", [35, 64, 100])
def test_inside_marks_the_pixels_that_come_from_the_photograph(box, side):
    height, width = 80, 60
    got = inside(box, height, width, side)
    scale = (box[2] - box[0]) / side
    for row in range(0, side, 3):
        for column in range(0, side, 3):
            x, y = box[0] + (column + 0.5) * scale, box[1] + (row + 0.5) * scale
            assert float(got[row, column]) == float(0 < x < width and 0 < y < height)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(-300, 300), st.integers(-300, 300), st.integers(1, 700))
def test_any_box_on_any_photograph_gives_a_square(height, width, x, y, side):
    crop = crop_square(torch.rand(3, height, width), (x, y, x + side, y + side))
    assert crop.shape[-1] == crop.shape[-2] == min(max(side, MIN_SIDE), MAX_SIDE)
    assert 0 <= float(crop.min()) <= float(crop.max()) <= 1


@pytest.mark.parametrize("box", [(10, 20, 42, 52), (-30, -20, 170, 180), (50, 60, 114, 124), (-500, -600, 900, 800)])
def test_a_pasted_mask_is_the_whole_crop_resized(box):
    """Against resizing all of the crop at once, which an 8k photograph has no memory for."""
    mask = torch.rand(64, 64, generator=torch.Generator().manual_seed(0))
    height, width, (x0, y0, x1, y1) = 100, 120, box
    whole = F.pad(
        F.interpolate(mask[None, None], (y1 - y0, x1 - x0), mode="bilinear", antialias=True)[0, 0],
        (x0, width - x1, y0, height - y1),
    )
    torch.testing.assert_close(paste(mask, box, height, width), whole, rtol=0, atol=1e-5)


def test_a_pasted_mask_is_bounded_however_large_the_box():
    far = 10_000_000
    assert paste(torch.ones(1024, 1024), (-far, -far, far, far), 300, 200).min() == 1
