"""lab/measures/detail.py on painted skin, where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from omniportrait.lab.measures.detail import FLOOR, KnownMoles, contrasts
from omniportrait.models.faces.geometry import moved

pytestmark = pytest.mark.quick

FACE = torch.tensor([[80.0, 90.0], [140.0, 90.0], [110.0, 125.0], [88.0, 155.0], [132.0, 155.0]])


def distance_from(place, side: int = 256) -> torch.Tensor:
    """[side, side] of each pixel's centre from a place in pixels."""
    y, x = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    return (x - place[0]).square().add((y - place[1]).square()).sqrt()


def skin(brightness: float = 0.6, deviation: float = 0.0, side: int = 256) -> torch.Tensor:
    noise = torch.randn(1, side, side, generator=torch.Generator().manual_seed(0))
    return (brightness + deviation * noise).expand(3, -1, -1).clone()


def painted(picture: torch.Tensor, place, radius: float, factor: float) -> torch.Tensor:
    """The picture with a disk made `factor` times as bright, its rim one pixel soft."""
    share = (radius + 0.5 - distance_from(place)).clamp(0, 1)
    return picture * (1 - share * (1 - factor))


def at(*places, radius: float = 4.0) -> KnownMoles:
    return KnownMoles(FACE, torch.tensor(places), torch.full((len(places),), radius))


def test_smooth_skin_gives_the_relative_darkness_over_the_floor():
    """On even skin the deviation is the floor, so the contrast is (1 - factor) / FLOOR, whatever the brightness."""
    for brightness in (0.2, 0.8):
        for factor in (0.5, 0.9):
            found = contrasts(painted(skin(brightness), (120, 100), 3.0, factor), at((120.0, 100.0)))
            assert found.item() == pytest.approx((1 - factor) / FLOOR, rel=0.02)


def test_noisy_skin_gives_the_darkness_in_its_own_deviation():
    """Brightness 0.5 with deviation 0.1 (twice the floor), a disk of 0: half a unit over a tenth, less 1.3 deviations
    for the darkest tenth of the ring that is left out."""
    places = [(40.5 + 44 * i, 40.5 + 44 * j) for i in range(5) for j in range(5)]  # on centres: nothing is averaged
    picture = skin(0.5, 0.1)
    for place in places:
        picture = painted(picture, place, 12.0, 0.0)
    found = contrasts(picture, at(*places, radius=16.0), search=0.0)
    assert found.mean().item() == pytest.approx(5 - 1.28, rel=0.1)


def test_bare_skin_gradients_edges_and_bright_spots_are_no_moles():
    x = torch.linspace(0.2, 0.9, 256).expand(3, 256, -1)
    edge = skin()
    edge[:, :, :120] *= 0.3
    bright = painted(skin(), (120, 100), 4, 1.5)
    corner = skin()
    corner[:, :100, :120] *= 0.3
    for picture in (skin(), x, edge, corner, bright):
        assert contrasts(picture, at((120.0, 100.0))).item() < 0.3
    assert contrasts(painted(edge, (128, 100), 3, 0.3), at((128.0, 100.0))).item() > 4


def test_search_finds_a_mole_nearby_and_not_one_far_away():
    picture = painted(skin(), (126, 100), 3.5, 0.3)
    near, far = contrasts(picture, at((120.0, 100.0), (106.0, 100.0)))
    assert near > 5 and far < 0.3
    assert contrasts(picture, at((120.0, 100.0)), search=0.0).item() < near


def test_places_follow_the_landmarks_of_a_moved_face():
    """A mole known in one picture is found in another where the face is turned, larger and elsewhere."""
    angle, scale = 0.3, 1.3
    rows = [
        [scale * math.cos(angle), -scale * math.sin(angle), -10.0],
        [scale * math.sin(angle), scale * math.cos(angle), -60.0],
    ]
    transform = torch.tensor([rows])
    there = moved(FACE[None], transform)[0]
    known = at((100.0, 130.0), (125.0, 80.0))
    carried = known.carried(there)
    torch.testing.assert_close(carried.places, moved(known.places[None], transform)[0], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(carried.radii, known.radii * scale, rtol=1e-5, atol=1e-4)
    picture = painted(skin(0.7, 0.02), carried.places[0].tolist(), 4.5, 0.4)
    present, absent = contrasts(picture, carried)
    assert present > 3 > 1 > absent


def test_description_gives_the_visible_moles_only():
    mark = {"x": 10.0, "y": 20.0, "radius": 3.0}
    description = {
        "landmarks": FACE.tolist(),
        "details": [
            {**mark, "kind": "mole", "visible": True},
            {**mark, "kind": "mole", "visible": False},
            {**mark, "kind": "scar", "visible": True},
        ],
    }
    known = KnownMoles.of(description)
    assert known.places.tolist() == [[10.0, 20.0]] and known.radii.tolist() == [3.0]
    nobody = KnownMoles.of({**description, "details": []})
    assert contrasts(skin(), nobody.carried(FACE)).shape == (0,)
