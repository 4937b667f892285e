"""The oval that five landmarks give, and a parser's mask kept to its own face."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omniportrait.models.faces.face import DetectedFace
from omniportrait.models.faces.mask import face_oval, near_face
from told_faces import face_at


def test_the_oval_holds_brows_to_chin_and_not_the_box():
    face = face_at(256, 256, 240)
    mask = face_oval(face, 512)
    assert mask.shape == (512, 512) and 0 <= float(mask.min()) and float(mask.max()) == 1
    eyes, mouth = 256 - 0.12 * 240, 256 + 0.27 * 240
    down = max(mouth - eyes, 1.05 * 0.4 * 240)
    for x, y in (*face.landmarks, (256, eyes - 0.7 * down), (256, eyes + 1.5 * down), (180, 256), (332, 256)):
        assert float(mask[round(y), round(x)]) == 1
    for x, y in ((256, eyes - 1.0 * down), (256, eyes + 1.8 * down), (120, 256), (392, 256), (160, 136), (352, 376)):
        assert float(mask[round(y), round(x)]) == 0
    half_width = max(1.08 * 96, 0.88 * down)
    assert float(mask.sum()) == pytest.approx(math.pi * half_width * 1.25 * down, rel=0.02)  # π a b
    assert torch.allclose(mask, mask.flip(1), atol=1e-3)


@given(st.floats(-60, 60), st.floats(0.2, 1.0), st.floats(-1, 1))
@settings(max_examples=60, deadline=None)
def test_the_oval_holds_all_landmarks_of_tilted_and_turned_heads(degrees, squeeze, aside):
    """squeeze narrows the face as turning the head does, aside moves nose and mouth; tilting turns the picture."""
    face = face_at(0, 0, 150)
    angle = math.radians(degrees)
    points = [(x * squeeze + (aside * 60 if i >= 2 else 0), y) for i, (x, y) in enumerate(face.landmarks)]
    cos, sin = math.cos(angle), math.sin(angle)
    turned = tuple((256 + x * cos - y * sin, 256 + x * sin + y * cos) for x, y in points)
    mask = face_oval(replace(face.mapped(1, 256, 256), landmarks=turned), 512)
    for x, y in turned:
        assert float(mask[round(y), round(x)]) > 0.99
    assert float(mask.mean()) < 0.5


def test_the_oval_turns_with_the_face():
    face = face_at(200, 220, 160)
    quarter = DetectedFace(
        (face.box[1], 400 - face.box[2], face.box[3], 400 - face.box[0]),
        tuple((y, 400 - x) for x, y in face.landmarks),
        face.score,
    )
    assert torch.allclose(face_oval(quarter, 400), torch.rot90(face_oval(face, 400), 1), atol=1e-3)


@pytest.mark.parametrize("degrees", [-70, -35, 20, 45])
def test_the_oval_of_a_tilted_face_is_the_same_oval_tilted(degrees):
    """Its area, centre of mass and long axis (the mask's second moments) against those of the upright face."""
    face = face_at(0, 0, 150)
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)

    def moments(points) -> tuple[float, torch.Tensor, torch.Tensor]:
        mask = face_oval(replace(face.mapped(1, 256, 256), landmarks=points), 512).double()
        at = torch.arange(512).double() + 0.5 - 256
        grid = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).reshape(-1, 2)
        weight = mask.reshape(-1, 1) / mask.sum()
        mean = (grid * weight).sum(0)
        return float(mask.sum()), mean, ((grid - mean) * weight).T @ (grid - mean)

    area, mean, spread = moments(tuple((256 + x, 256 + y) for x, y in face.landmarks))
    tilted = moments(tuple((256 + x * cos - y * sin, 256 + x * sin + y * cos) for x, y in face.landmarks))
    assert tilted[0] == pytest.approx(area, rel=0.01)
    assert torch.allclose(tilted[1], turn @ mean, atol=0.5)
    assert torch.allclose(tilted[2], turn @ spread @ turn.T, atol=0.02 * float(spread.max()))


def test_the_oval_grows_around_unusual_landmarks():
    """Eyes close together over a mouth twice as wide: at the mouth's height the usual oval would be too narrow."""
    face = face_at(256, 256, 200)
    wide = face.landmarks[:3] + ((256 - 110, 310), (256 + 110, 310))
    mask = face_oval(replace(face, landmarks=wide), 512)
    assert all(float(mask[round(y), round(x)]) == 1 for x, y in wide)


@pytest.mark.parametrize("aside", [-24, 0, 30])
def test_a_profile_s_oval_is_in_the_middle_of_its_box(aside):
    """In a profile all landmarks sit at the front of the box; the face's middle is further back."""
    face = face_at(256, 256, 200)
    mask = face_oval(replace(face, landmarks=tuple((x + aside, y) for x, y in face.landmarks)), 512)
    columns = torch.arange(512) + 0.5
    assert float((mask.sum(0) * columns).sum() / mask.sum()) == pytest.approx(256, abs=0.5)


@pytest.mark.parametrize("landmarks", [((5.0, 5.0),) * 5, ((0.0, 0.0),) * 2 + ((1e4, 1e4),) * 3])
def test_degenerate_landmarks_still_give_a_finite_oval(landmarks):
    mask = face_oval(DetectedFace((0, 0, 10, 10), landmarks, 1.0), 64)
    assert bool(mask.isfinite().all()) and 0 <= float(mask.min()) <= float(mask.max()) <= 1


def test_a_parsed_neighbour_does_not_count():
    face = face_at(200, 250, 120)
    parsed = torch.zeros(500, 500)
    parsed[200:300, 160:240] = 1
    parsed[200:300, 400:480] = 1
    kept = near_face(parsed, face)
    assert float(kept[230:260, 180:220].min()) == 1 and float(kept[:, 400:].max()) == 0
