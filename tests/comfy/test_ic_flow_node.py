"""IC-Portrait Flow: it shows the flow that a run of the same inputs warps by."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ic_files import face, written
from omniportrait.guidance.ic_portrait.settings import Settings
from omniportrait.lab.testbed import small
from omniportrait.models.ic.handle import load_handle
from omniportrait.models.ic.nets import Shape
from omniportrait.nodes.ic_flow import ICFlow
from omniportrait.sampling.ic_pictures import overview
from omniportrait.sampling.ic_portrait import patch
from omniportrait.sampling.ic_run import by_landmarks, sized

SIDE = 128


@pytest.fixture
def handle(sd15, tmp_path):
    own = load_handle(str(written(tmp_path / "ic.safetensors", Shape.of(sd15.model.model_config.unet_config))))
    return replace(own, header=replace(own.header, resolution=SIDE, match_level=4))


def shown(*args, **kwargs) -> torch.Tensor:
    with torch.inference_mode():
        return ICFlow.execute(*args, **kwargs).result[0]


def overview_by_landmarks(profile, style) -> torch.Tensor:
    flow = by_landmarks(profile, style, (SIDE // 8, SIDE // 8))
    return overview(sized(profile.crop, SIDE), sized(style.crop, SIDE), flow, None)


def test_the_matching_nets_flow_is_that_of_a_run(sd15, vae, handle):
    profile, style, positive, runs = face(1), face(2, 8.0), small.conditioning(sd15, 1), []
    with torch.inference_mode():
        model = patch(sd15, vae, handle, profile, style, Settings(flow="shared"), runs.append)
    small.sample(model, positive, cfg=2.0, steps=1)
    expected = overview(sized(profile.crop, SIDE), sized(style.crop, SIDE), runs[0].flow, runs[0].trusted)
    picture = shown(profile, style, sd15, vae, handle, positive)
    assert picture.shape == (1, SIDE, 5 * SIDE, 3)
    torch.testing.assert_close(picture, expected, atol=1e-3, rtol=0)
    assert runs[0].trusted.any() and not torch.equal(picture[:, :, : 4 * SIDE], overview_by_landmarks(profile, style))


def test_without_nets_it_is_the_landmarks(handle):
    picture = shown(face(1), face(2, 8.0))
    height = picture.shape[1]
    assert picture.shape == (1, height, 4 * height, 3)
    shift = height * 8 // SIDE  # the style's face lies so many pixels further right, and so does the warped profile
    profile, warped = picture[:, :, :height], picture[:, :, 2 * height : 3 * height]
    torch.testing.assert_close(warped[:, :, shift:], profile[:, :, : height - shift], atol=0.02, rtol=0)


def test_refusals_are_one_sentence_that_says_what_to_do(sd15, vae, handle):
    with pytest.raises(ValueError, match="nothing is connected to vae, positive; connect all of them, or none"):
        shown(face(1), face(2), model=sd15, ic_portrait=handle)
    with pytest.raises(ValueError, match="No face was found in the style picture"):
        shown(face(1), replace(face(2), landmarks=None))
    bare = replace(handle, header=replace(handle.header, matching_levels=0), matching=None)
    with pytest.raises(ValueError, match="has no matching net"):
        shown(face(1), face(2), sd15, vae, bare, small.conditioning(sd15, 1))
