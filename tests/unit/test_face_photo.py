"""What people may connect: odd pictures, odd masks, settings that are not offered, missing files."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omniportrait.models.faces import FaceReference
from omniportrait.models.faces.build import MASK_SOURCES, NO_FACE_POLICIES, FaceOptions, make_reference
from omniportrait.models.faces.detector import DETECTORS, ORDERS, choose_backend
from omniportrait.models.faces.photo import prepare_mask, prepare_photo


@pytest.mark.parametrize(
    "wrong",
    [
        {"order": "biggest"},
        {"no_face": ""},
        {"mask_source": "x"},
        {"detector": "dlib"},
        {"index": -1},
        {"crop_factor": 0.5},
        {"crop_factor": float("nan")},
        {"crop_factor": 7},
    ],
)
def test_values_that_are_not_offered_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        FaceOptions(**wrong)


def test_alpha_is_laid_over_grey_and_grey_becomes_colour():
    rgba = torch.rand(1, 40, 50, 4, generator=torch.Generator().manual_seed(2))
    expected = rgba[..., :3].numpy() * rgba[..., 3:].numpy() + 0.5 * (1 - rgba[..., 3:].numpy())
    np.testing.assert_allclose(prepare_photo(rgba).permute(1, 2, 0).numpy(), expected[0], atol=1e-6)
    assert torch.equal(prepare_photo(rgba[..., :1]), rgba[0, ..., 0].expand(3, -1, -1))


def test_odd_values_are_clipped_or_refused(caplog):
    photo = torch.full((1, 40, 40, 3), 0.25)
    photo[0, 0, 0, 0], photo[0, 0, 1, 0] = 1.8, -0.5
    assert prepare_photo(photo)[0, 0, :2].tolist() == [1.0, 0.0] and "clipped" in caplog.text
    for value in (math.nan, math.inf):
        photo[0, 3, 3, 1] = value
        with pytest.raises(ValueError, match="NaN or infinite"):
            prepare_photo(photo)
        with pytest.raises(ValueError, match="NaN or infinite"):
            prepare_mask(photo[..., 1], 40, 40)


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((1, 8, 8, 3), "only 8 x 8 pixels"),
        ((1, 500, 20, 3), "only 20 x 500"),
        ((1, 64, 64, 5), "5 channels"),
        ((0, 64, 64, 3), "is empty"),
        ((1, 64, 0, 3), "is empty"),
        ((64, 64, 3), "shape"),
    ],
)
def test_what_is_no_photograph_is_refused_kindly(shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_reference(torch.zeros(shape), None, FaceOptions())


def test_asking_for_facexlib_without_its_files_names_them(tmp_path):
    with pytest.raises(ValueError) as caught:
        choose_backend("facexlib", [tmp_path])
    for part in ("detection_Resnet50_Final.pth", str(tmp_path), "xinntao/facexlib", "built-in"):
        assert part in str(caught.value)
    backend = choose_backend("auto", [tmp_path])
    assert backend.detector.name == "built-in" and backend.parser is None


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_picture_gives_a_square_crop_or_one_sentence(data):
    """The real detector on anything: noise, odd shapes, channels, ranges, masks and settings."""
    height, width = data.draw(st.integers(0, 130)), data.draw(st.integers(0, 130))
    channels, batch = data.draw(st.integers(1, 6)), data.draw(st.integers(0, 2))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    image = torch.rand(batch, height, width, channels, generator=generator)
    image = image * data.draw(st.floats(-3, 300)) + data.draw(st.floats(-2, 2))
    if image.numel() and data.draw(st.integers(0, 9)) == 0:
        image.view(-1)[0] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    mask = None
    if data.draw(st.booleans()):
        shape = data.draw(st.lists(st.integers(0, 70), min_size=2, max_size=4))
        mask = torch.rand(shape, generator=generator) * data.draw(st.floats(-1, 2))
    options = FaceOptions(
        order=data.draw(st.sampled_from(ORDERS)),
        index=data.draw(st.integers(0, 2)),
        crop_factor=data.draw(st.floats(1, 6)),
        no_face=data.draw(st.sampled_from(NO_FACE_POLICIES)),
        mask_source=data.draw(st.sampled_from(MASK_SOURCES)),
        detector=data.draw(st.sampled_from(DETECTORS)),
    )
    try:
        result = make_reference(image, mask, options)
    except ValueError as error:
        sentence = str(error)
        assert sentence.endswith(".") and "\n" not in sentence and len(sentence) > 40
        return
    reference = result.reference
    assert isinstance(reference, FaceReference)
    side = reference.crop.shape[1]
    assert reference.crop.shape == (1, side, side, 3) and 256 <= side <= 1024 and reference.crop.dtype == torch.float32
    assert bool(reference.crop.isfinite().all())
    assert 0 <= float(reference.crop.min()) <= float(reference.crop.max()) <= 1
    assert result.mask.shape == result.crop.shape[:3] and len(result.crop) <= batch  # a photograph may be left out
    assert reference.mask is None or reference.mask.shape == (1, side, side)
    for made in (result.mask, reference.mask):
        if made is not None:
            assert made.shape[1:] == (side, side) and 0 <= float(made.min()) <= float(made.max()) <= 1
    assert result.overview.shape[-1] == 3 and max(result.overview.shape[1:3]) <= 1024
