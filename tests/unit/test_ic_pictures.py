"""IC-Portrait's residuals beside another ControlNet's, and its crop back in the photograph."""

from __future__ import annotations

import pytest
import torch
from omniportrait.guidance.ic_portrait.flow import own_places
from omniportrait.models.faces import FaceReference
from omniportrait.sampling.ic_pictures import feathered, flow_colours, overview, pasted
from omniportrait.sampling.ic_run import merged, padded


def test_both_residuals_meet_at_the_same_skip():
    """The UNet pops the last one first; other ControlNets may have fewer, or none at a place."""
    ones = torch.ones(1, 2, 3, 4)
    own = {"input": [], "middle": [5 * ones], "output": [1 * ones, 2 * ones, 3 * ones]}
    other = padded({"middle": [ones[..., :2]], "output": [None, 10 * ones[..., :2]]}, 2)
    both = merged(other, own)
    assert [float(each[0, 0, 0, -1]) for each in both["output"]] == [1, 2, 13]
    assert [float(each[0, 0, 0, 0]) for each in both["output"]] == [1, 2, 3]  # nothing of it over the profile
    assert float(both["middle"][0][0, 0, 0, -1]) == 6 and float(both["middle"][0][0, 0, 0, 0]) == 5
    both["output"].pop()
    assert len(own["output"]) == 3 and merged(padded(None, 2), own)["output"][0] is own["output"][0]


def test_the_crop_goes_back_to_its_place_and_nothing_else_changes():
    photo = torch.rand(1, 40, 60, 3, generator=torch.Generator().manual_seed(0))
    style = FaceReference(torch.zeros(1, 16, 16, 3), None, (50.0, -6.0, 66.0, 10.0), "test")  # reaches outside
    face = torch.full((1, 16, 16, 3), 0.25)
    result, new = pasted(photo, face, style, feather=0.2)
    outside = torch.ones(40, 60, dtype=torch.bool)
    outside[:10, 50:] = False
    assert torch.equal(result[0][outside], photo[0][outside]) and not new[0][outside].any()
    middle = result[0, 2, 58]
    assert torch.allclose(middle, torch.full((3,), 0.25)) and float(new[0, 2, 58]) == 1
    nothing, _ = pasted(photo, face, style, feather=0.2, mask=torch.zeros(1, 4, 4))
    assert torch.equal(nothing, photo)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_crop_of_a_turned_photograph_goes_back_where_it_was(turns):
    """Face Reference turns a photograph by itself; its box is in the upright one."""
    photo = torch.rand(1, 40, 60, 3, generator=torch.Generator().manual_seed(0))
    upright = torch.rot90(photo, turns, (1, 2))
    style = FaceReference(torch.zeros(1, 16, 16, 3), None, (5.0, 8.0, 21.0, 24.0), "test", turns=turns)
    same, new = pasted(photo, upright[:, 8:24, 5:21], style, feather=0.2)
    torch.testing.assert_close(same, photo)
    assert new.shape == (1, 40, 60) and torch.equal(
        torch.rot90(new, turns, (1, 2))[0, 8:24, 5:21] > 0, new.new_ones(16, 16) > 0
    )


def test_the_feather_is_one_inside_and_falls_to_the_border():
    share = feathered(40, 0.25)
    assert bool((share[10:30, 10:30] == 1).all()) and float(share[0].max()) < 0.01
    assert bool((share[20, :10].diff() > 0).all())
    assert torch.allclose(share, share.T) and torch.allclose(share, share.flip(0))


def test_a_flow_onto_itself_is_white_and_directions_differ():
    own = own_places(4, 4)[None]
    assert float(flow_colours(own).min()) > 1 - 1e-5
    right, down = (flow_colours(own + torch.tensor(step))[0, :, 0, 0] for step in ([0.2, 0.0], [0.0, 0.2]))
    assert float((right - down).abs().max()) > 0.3


@pytest.mark.parametrize("known", [False, True])
def test_the_overview_has_a_tile_for_all_that_is_known(known):
    picture = torch.rand(1, 3, 8, 8)
    shown = overview(picture, picture, own_places(2, 2)[None] if known else None,
                     torch.ones(1, 2, 2, dtype=torch.bool) if known else None)  # fmt: skip
    assert shown.shape == (1, 8, 8 * (5 if known else 2), 3)
    assert torch.allclose(shown[:, :, :8], picture.movedim(1, -1))
