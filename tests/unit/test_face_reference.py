"""Choice among faces, crops, masks and policies, with a detector that finds what the test says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from omniportrait.models.faces.build import FaceOptions, NoFaceError, make_reference
from omniportrait.models.faces.detector import ORDERS, arrange
from told_faces import face_at, grey


class Painted:
    """A parser that takes bright pixels for skin."""

    name = "painted"

    def parse(self, crop: torch.Tensor) -> torch.Tensor:
        return (crop.mean(0) > 0.5).float()


FACES = (face_at(100, 200, 80, 0.90), face_at(330, 260, 120, 0.95), face_at(560, 120, 60, 0.99))


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("largest", (1, 0, 2)),
        ("smallest", (2, 0, 1)),
        ("left to right", (0, 1, 2)),
        ("right to left", (2, 1, 0)),
        ("top to bottom", (2, 0, 1)),
        ("centre-most", (1, 0, 2)),
        ("most confident", (2, 1, 0)),
    ],
)
def test_order_and_index_choose_the_face(told, order, expected):
    for shuffled in (FACES, FACES[::-1]):
        assert [FACES.index(face) for face in arrange(shuffled, order, 480, 640)] == list(expected)
    told(*FACES)
    for index, which in enumerate(expected):
        reference = make_reference(grey(), None, FaceOptions(order=order, index=index)).reference
        x = (reference.box[0] + reference.box[2]) / 2
        assert x == pytest.approx(FACES[which].centre[0], abs=0.5)


def test_every_order_of_the_node_is_tested():
    assert len(ORDERS) == 7 == len(set(ORDERS))


def test_equal_faces_come_most_confident_first():
    unsure, sure = face_at(100, 100, 50, 0.9), face_at(300, 100, 50, 0.95)
    assert arrange([unsure, sure], "largest", 200, 400) == [sure, unsure]


def test_an_index_beyond_the_last_face_says_how_many_there_are(told):
    told(*FACES)
    with pytest.raises(ValueError, match="Face number 3 .* 3 faces were found; set index to at most 2"):
        make_reference(grey(), None, FaceOptions(index=3))


@pytest.mark.parametrize("factor", [1.0, 2.0, 3.7])
def test_crop_box_and_marks_belong_together(told, factor):
    """A bright dot at each landmark of the photograph is found again at the landmark of the crop."""
    face = face_at(300, 240, 120)
    told(face)
    photo = grey(value=0.0)
    for x, y in face.landmarks:
        photo[0, round(y) - 1 : round(y) + 1, round(x) - 1 : round(x) + 1] = 1.0
    reference = make_reference(photo, None, FaceOptions(crop_factor=factor)).reference
    side = reference.box[2] - reference.box[0]
    assert side == round(factor * 120) and reference.crop.shape[1] == reference.crop.shape[2]
    scale = reference.crop.shape[1] / side
    assert reference.face_box[2] - reference.face_box[0] == pytest.approx(96 * scale)
    for (x, y), (px, py) in zip(reference.landmarks, face.landmarks, strict=True):
        assert x == pytest.approx((px - reference.box[0]) * scale)
        assert y == pytest.approx((py - reference.box[1]) * scale)
        assert float(reference.crop[0, round(y) - 2 : round(y) + 2, round(x) - 2 : round(x) + 2].max()) > 0.9
        assert float(reference.crop[0, round(y) + 6, round(x) + 6].max()) < 0.1


def test_the_parser_makes_the_mask_where_there_is_one(told):
    photo = grey()
    photo[0, 200:300, 290:350] = 0.9
    told(face_at(320, 250, 130), parser=Painted())
    for source, name in (("auto", "painted"), ("landmarks", "landmarks"), ("whole crop", "whole crop")):
        result = make_reference(photo, None, FaceOptions(mask_source=source))
        assert result.reference.source == f"told, {name}"
        assert torch.equal(result.reference.mask, result.mask)
    painted = make_reference(photo, None, FaceOptions()).mask
    x0, y0 = make_reference(photo, None, FaceOptions()).reference.box[:2]
    assert float(painted.sum()) == pytest.approx(100 * 60, rel=0.1)
    assert float(painted[0, 250 - round(y0), 320 - round(x0)]) == 1


def test_a_parser_that_sees_nothing_gives_way_to_the_landmarks(told, caplog):
    told(face_at(320, 250, 130), parser=Painted())
    assert make_reference(grey(), None, FaceOptions()).reference.source == "told, landmarks"
    assert "parser found no face" in caplog.text


def test_attention_leaves_the_mask_to_the_model(told):
    told(face_at(320, 250, 130))
    result = make_reference(grey(), None, FaceOptions(mask_source="attention"))
    assert result.reference.mask is None and result.reference.face_box is not None
    assert result.mask.shape == result.reference.crop.shape[:3] and float(result.mask.min()) == 1


def test_the_whole_crop_ends_at_the_photograph(told):
    told(face_at(60, 240, 200))
    result = make_reference(grey(), None, FaceOptions(mask_source="whole crop"))
    x0, y0, x1, _ = result.reference.box
    outside = round(-x0)
    assert (y0, x1 - x0, outside) == (40, 400, 140)
    assert float(result.mask[0, :, :outside].max()) == 0 and float(result.mask[0, :, outside:].min()) == 1


@pytest.mark.parametrize("size", [(480, 640), (48, 64), (960, 1280)])
def test_a_connected_mask_wins_and_points_at_its_face(told, size):
    told(*FACES)
    mask = torch.zeros(1, 480, 640)
    mask[0, 90:150, 530:590] = 1  # the smallest of the three
    mask = torch.nn.functional.interpolate(mask[None], size, mode="area")[0]
    result = make_reference(grey(), mask, FaceOptions(order="largest", mask_source="attention"))
    assert result.reference.source == "told, connected mask"
    side = result.reference.crop.shape[1]
    x0, y0, x1, _ = result.reference.box
    assert (x0 + x1) / 2 == pytest.approx(560, abs=1)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    weight = result.mask[0] / result.mask[0].sum()
    scale = (x1 - x0) / side
    assert float((column * weight).sum()) * scale + x0 == pytest.approx(560, abs=1.5)
    assert float((row * weight).sum()) * scale + y0 == pytest.approx(120, abs=1.5)


WHEEL = face_at(320, 330, 280, 0.97, 0.5)


@pytest.mark.parametrize("order", ORDERS)
def test_a_sure_face_comes_before_a_doubtful_one_in_every_order(told, order):
    """Whichever place, size and score the doubtful find has."""
    for x, y, size in ((20, 20, 400), (600, 460, 20), (320, 240, 90)):
        doubtful = face_at(x, y, size, 1.0, 0.6)
        assert not arrange([doubtful, *FACES], order, 480, 640)[-1].sure
        told(doubtful, FACES[0])
        reference = make_reference(grey(), None, FaceOptions(order=order)).reference
        assert (reference.box[0] + reference.box[2]) / 2 == pytest.approx(FACES[0].centre[0], abs=0.5)


def test_a_doubtful_find_alone_is_no_face(told, caplog):
    told(WHEEL)
    with pytest.raises(NoFaceError, match=r"No face was found for certain .* only 1 doubtful \(0\.50 of 1\)"):
        make_reference(grey(), None, FaceOptions(no_face="stop"))
    result = make_reference(grey(), None, FaceOptions(no_face="whole image"))
    assert result.reference.box == (0, -80, 640, 560) and result.reference.face_box is None
    assert "only 1 doubtful" in caplog.text and "whole image is used" in caplog.text
    assert [round(255 * v) for v in result.overview[0, 300, 208].tolist()] == [255, 80, 60]  # its box, in red


def test_a_doubtful_find_is_taken_where_it_is_pointed_at(told, caplog):
    told(FACES[0], WHEEL)
    by_index = make_reference(grey(), None, FaceOptions(index=1)).reference
    assert (by_index.box[0] + by_index.box[2]) / 2 == pytest.approx(320) and "is doubtful (0.50)" in caplog.text
    told(WHEEL)
    mask = torch.zeros(480, 640)
    mask[280:380, 280:360] = 1
    by_mask = make_reference(grey(), mask, FaceOptions()).reference
    assert (by_mask.box[0] + by_mask.box[2]) / 2 == pytest.approx(320) and by_mask.face_box is not None


def test_a_mask_that_leaves_out_every_face_says_what_to_do(told):
    mask = torch.zeros(480, 640)
    mask[400:440, 200:260] = 1
    told(*FACES)
    with pytest.raises(ValueError, match="3 faces were found, but the connected mask covers none .* order and index"):
        make_reference(grey(), mask, FaceOptions(crop_factor=2.0))
    told(FACES[0], WHEEL)
    mask[330, 320] = 1  # hardly any of the doubtful one
    with pytest.raises(ValueError, match="1 face was found, but the connected mask does not cover it"):
        make_reference(grey(), mask, FaceOptions(no_face="whole image"))


@pytest.mark.parametrize("found", [(), (face_at(500, 100, 90, 0.99, 0.4),)])
def test_without_a_sure_face_the_crop_is_made_around_the_mask(told, caplog, found):
    told(*found)
    mask = torch.zeros(480, 640)
    mask[400:440, 200:260] = 1
    reference = make_reference(grey(), mask, FaceOptions(crop_factor=2.0)).reference
    assert reference.box == (170, 360, 290, 480) and reference.face_box is None
    assert "around the connected mask" in caplog.text


def test_a_connected_mask_ends_at_the_photograph(told):
    told(face_at(60, 240, 200))
    result = make_reference(grey(), torch.ones(2, 1, 30, 40), FaceOptions())
    assert result.reference.source == "told, connected mask"
    assert float(result.mask[0, :, :140].max()) == 0 and float(result.mask[0, :, 140:].min()) > 0.999


def test_an_empty_mask_is_as_no_mask(told, caplog):
    told(FACES[0])
    with_empty = make_reference(grey(), torch.zeros(1, 64, 64), FaceOptions()).reference
    assert with_empty.key == make_reference(grey(), None, FaceOptions()).reference.key
    assert "mask is empty" in caplog.text


def test_without_a_face_the_policy_decides(told, caplog):
    told()
    with pytest.raises(ValueError, match='No face was found .* set no_face to "whole image"'):
        make_reference(grey(), None, FaceOptions(no_face="stop"))
    result = make_reference(grey(), None, FaceOptions(no_face="whole image"))
    assert result.reference.box == (0, -80, 640, 560) and result.reference.mask is None
    assert "no face found; the whole image is used" in caplog.text and "attention is asked" in caplog.text
    whole = make_reference(grey(), None, FaceOptions(no_face="whole image", mask_source="whole crop")).mask
    assert float(whole[0, 80:560].min()) == 1 and float(whole[0, :79].max()) == 0


def test_a_small_face_is_reported(told, caplog):
    told(face_at(320, 240, 30))
    assert make_reference(grey(), None, FaceOptions()).reference.crop.shape == (1, 256, 256, 3)
    assert "only 30 pixels" in caplog.text


def test_overview_shows_the_photograph_the_faces_and_the_crop(told):
    told(*FACES)
    overview = make_reference(grey(), None, FaceOptions(order="left to right", index=1)).overview
    assert overview.shape == (1, 480, 640, 3)
    pixel = lambda x, y: [round(255 * v) for v in overview[0, y, x].tolist()]  # noqa: E731
    assert pixel(330, 200) == [0, 220, 90]  # upper edge of the used face
    assert pixel(100, 239) == [255, 196, 0]  # lower edge of another
    assert pixel(330, 140) == [0, 170, 255]  # upper edge of the crop
    assert pixel(10, 470) == [64, 64, 64]
    told()
    big = make_reference(grey(300, 3000), None, FaceOptions(no_face="whole image")).overview
    assert big.shape == (1, 102, 1024, 3)


def test_key_is_the_content(told):
    told(*FACES)
    photo = torch.rand(1, 480, 640, 3, generator=torch.Generator().manual_seed(1))
    first, again = (make_reference(photo.clone(), None, FaceOptions()).reference for _ in range(2))
    assert first.key == again.key and first != again and len({first, again}) == 2
    others = [
        make_reference(photo, None, FaceOptions(index=1)).reference,
        make_reference(photo, None, FaceOptions(crop_factor=2.5)).reference,
        make_reference(photo, None, FaceOptions(mask_source="attention")).reference,
        make_reference(photo.flip(2), None, FaceOptions()).reference,
        replace(first, face_box=(0.0, 0.0, 9.0, 9.0)),
    ]
    assert len({first.key, *(other.key for other in others)}) == 6
