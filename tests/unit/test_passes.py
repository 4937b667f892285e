"""Boxes and half-resolution views, against their definitions."""

import pytest
import torch
from omniportrait.sampling import passes


def test_halving_a_noise_halves_its_deviation():
    noise = torch.randn(1, 4, 256, 256, generator=torch.Generator().manual_seed(0))
    assert float(passes.halve(noise).std()) == pytest.approx(0.5, rel=0.02)


def test_arguments_of_the_picture_are_halved_and_the_text_is_not():
    call = {
        "c_crossattn": torch.ones(1, 77, 8),
        "c_concat": torch.arange(16.0).view(1, 1, 4, 4),
        "control": {"output": [torch.ones(1, 2, 2, 2), None]},
        "y": torch.ones(1, 5),
    }
    _, sigma, half = passes.halved(torch.zeros(1, 4, 4, 4), torch.tensor([3.0]), call)
    assert float(sigma) == 1.5
    assert half["c_concat"].tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert half["control"]["output"][0].shape == (1, 2, 1, 1) and half["control"]["output"][1] is None
    assert half["c_crossattn"] is call["c_crossattn"] and half["y"] is call["y"]


def test_a_crop_takes_its_part_of_every_level():
    whole = torch.arange(32.0 * 32).view(1, 1, 32, 32)
    call = {"c_concat": whole, "control": {"middle": [whole[..., ::8, ::8]]}}
    part = passes.cropped(call, 32, (16, 8, 8, 24))
    assert part["c_concat"].equal(whole[..., 8:24, 24:32])
    assert part["control"]["middle"][0].equal(whole[..., 8:24:8, 24:32:8])


@pytest.mark.parametrize("width", [64, 65, 67, 81, 97, 100])
def test_a_crop_of_any_width_knows_its_levels(width):
    """Each halving of a UNet (stride 2, padding 1) keeps the last half cell."""
    level = torch.arange(float(width)).expand(1, 1, 64, width)
    for down in (1, 2, 4, 8):
        part = passes.cropped({"control": [level]}, width, (32, 32, 16, 16))["control"][0]
        assert part.equal(level[..., 16 // down : 48 // down, 16 // down : 48 // down])
        level = level[..., ::2, ::2]


@pytest.mark.parametrize(
    "place, expected",
    [
        ((slice(12, 20), slice(12, 20)), (16, 16, 8, 8)),  # margin 2 on each side
        ((slice(0, 4), slice(60, 64)), (8, 8, 0, 56)),  # at the border
        ((slice(0, 64), slice(0, 64)), None),  # everything
        ((slice(0, 0), slice(0, 0)), None),  # nothing
    ],
)
def test_face_box(place, expected):
    mask = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    mask[(1, 0, *place)] = True
    assert passes.face_box(mask) == expected


def test_a_box_holds_every_face_of_a_batch_and_its_margin():
    mask = torch.zeros(2, 1, 64, 48, dtype=torch.bool)
    mask[0, 0, 9:15, 3:9] = True
    mask[1, 0, 20:30, 10:20] = True
    h, w, y, x = passes.face_box(mask)
    margin_y, margin_x = (30 - 9) / 4, (20 - 3) / 4
    assert y <= 9 - margin_y + 1 and y + h >= 30 + margin_y - 1
    assert x <= max(3 - margin_x + 1, 0) and x + w >= 20 + margin_x - 1
    assert all(side % passes.CELL == 0 for side in (h, w, y, x))
