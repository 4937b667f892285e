"""Photographs as people have them, through the real detector: tiny, huge, grey, transparent, crowded, upside down."""

from __future__ import annotations

import logging

import pytest
import skimage.data
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from omniportrait.models.faces.build import FaceOptions, make_reference
from omniportrait.models.faces.mtcnn import BuiltInDetector
from omniportrait.models.faces.photo import prepare_mask, prepare_photo

OPTIONS = FaceOptions(
    order="left to right", index=0, crop_factor=2.0, no_face="stop", mask_source="auto", detector="built-in"
)


@pytest.fixture(scope="module")
def astronaut() -> torch.Tensor:
    """IMAGE [1, 512, 512, 3]; the eyes are at (204, 101) and (247, 103)."""
    return torch.from_numpy(skimage.data.astronaut().copy()).float().div(255)[None]


def looks_at_the_face(reference, photo: torch.Tensor, at=(223, 120), tolerance: float = 25) -> None:
    """The crop's own centre lies on the astronaut's nose, in pixels of the photograph."""
    x0, y0, x1, y1 = reference.box
    assert abs((x0 + x1) / 2 - at[0]) < tolerance and abs((y0 + y1) / 2 - at[1]) < tolerance
    assert reference.crop.isfinite().all() and 0 <= float(reference.crop.min()) <= float(reference.crop.max()) <= 1


def test_one_pixel_is_refused_with_its_size():
    with pytest.raises(ValueError, match="only 1 x 1 pixels"):
        make_reference(torch.rand(1, 1, 1, 3), None, OPTIONS)


@pytest.mark.slow
def test_a_photograph_of_8k_is_cut_at_full_resolution(astronaut):
    """7680 x 4320: the face is found in a small copy, and the crop is taken from the large one."""
    wide = torch.full((1, 4320, 7680, 3), 0.4)
    wide[:, 1000:3048, 3000:5048] = F.interpolate(astronaut.movedim(-1, 1), scale_factor=4).movedim(1, -1)
    result = make_reference(wide, None, OPTIONS)
    looks_at_the_face(result.reference, wide, at=(3000 + 4 * 223, 1000 + 4 * 120), tolerance=100)
    assert 256 <= result.reference.crop.shape[1] <= 1024
    assert max(result.overview.shape[1:3]) <= 1024


@pytest.mark.parametrize("kind", ["grey", "grey and alpha", "RGBA", "RGBA half transparent"])
def test_channels(astronaut, kind):
    grey = astronaut.mean(dim=-1, keepdim=True)
    opaque = torch.ones_like(grey)
    image = {
        "grey": grey,
        "grey and alpha": torch.cat([grey, opaque], dim=-1),
        "RGBA": torch.cat([astronaut, opaque], dim=-1),
        "RGBA half transparent": torch.cat([astronaut, opaque * 0.6], dim=-1),
    }[kind]
    reference = make_reference(image, None, OPTIONS).reference
    looks_at_the_face(reference, image)
    if kind == "RGBA":
        assert torch.equal(reference.crop, make_reference(astronaut, None, OPTIONS).reference.crop)
    if "grey" in kind:
        assert torch.equal(reference.crop[..., 0], reference.crop[..., 2])


def test_sixteen_faces_are_found_and_ordered(astronaut, monkeypatch):
    """A class photograph of one astronaut, looked at once: each index is one of four rows of four, and there is no
    seventeenth."""
    detect, found = BuiltInDetector.detect, {}

    def once(self, picture: torch.Tensor) -> list:
        key = (picture.shape, float(picture.sum()))
        if key not in found:
            found[key] = detect(self, picture)
        return found[key]

    monkeypatch.setattr(BuiltInDetector, "detect", once)
    face = astronaut[:, 20:220, 110:310]
    crowd = face.repeat(1, 4, 4, 1)
    centres = []
    for index in range(16):
        options = FaceOptions("left to right", index, 1.5, "stop", "landmarks", "built-in")
        x0, y0, x1, y1 = make_reference(crowd, None, options).reference.box
        centres.append(((x0 + x1) / 2, (y0 + y1) / 2))
    assert [x for x, _ in centres] == sorted(x for x, _ in centres)
    assert sorted({(int(x // 200), int(y // 200)) for x, y in centres}) == [(x, y) for x in range(4) for y in range(4)]
    with pytest.raises(ValueError, match="Face number 16 was asked for"):
        make_reference(crowd, None, FaceOptions("largest", 16, 1.5, "stop", "landmarks", "built-in"))


def test_upside_down_is_turned_and_told(astronaut, caplog):
    upright = make_reference(astronaut, None, OPTIONS).reference
    with caplog.at_level(logging.WARNING):
        turned = make_reference(astronaut.flip(1, 2), None, OPTIONS).reference
    assert "not upright" in caplog.text
    assert turned.crop.shape == upright.crop.shape
    assert float((turned.crop - upright.crop).abs().mean()) < 0.05


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_prepared_photograph_is_three_channels_in_range(data):
    h, w, channels = data.draw(st.integers(32, 48)), data.draw(st.integers(32, 48)), data.draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    image = torch.rand(1, h, w, channels, generator=generator)
    image = image * data.draw(st.floats(0.1, 5)) + data.draw(st.floats(-1, 1))
    before = image.clone()
    photo = prepare_photo(image)
    assert photo.shape == (3, h, w) and photo.dtype == torch.float32
    assert 0 <= float(photo.min()) <= float(photo.max()) <= 1
    assert torch.equal(image, before)  # another node may read the same tensor
    clipped = image[0].clamp(0, 1).movedim(-1, 0)
    if channels in (1, 3):
        assert torch.equal(photo, clipped.expand(3, -1, -1))
    else:
        alpha = clipped[-1]
        torch.testing.assert_close(photo[0], clipped[0] * alpha + 0.5 * (1 - alpha), rtol=0, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_prepared_mask_fits_the_photograph(data):
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    height, width = data.draw(st.integers(32, 64)), data.draw(st.integers(32, 64))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    given_mask = torch.rand(1, *shape, generator=generator) * data.draw(st.floats(0, 3))
    made = prepare_mask(given_mask, height, width)
    if float(given_mask.clamp(0, 1).max()) < 0.01:
        assert made is None
        return
    assert made.shape == (height, width) and 0 <= float(made.min()) <= float(made.max()) <= 1
    if shape == (height, width):
        assert torch.equal(made, given_mask[0].clamp(0, 1))
