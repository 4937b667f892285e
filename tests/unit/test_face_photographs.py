"""Photographs that lie on their side, batches of one person, lists of several."""

from __future__ import annotations

import pytest
import torch
from omniportrait.models.faces.build import FaceOptions, NoFaceError, make_reference, make_references
from omniportrait.models.faces.detector import find_faces
from told_faces import Bright, grey, marked


@pytest.mark.parametrize(
    ("trusts", "turns"),
    [
        ((0.97,), 0),
        ((0.5, 0.3, 0.97, 0.6), 2),
        ((0.55, 0.95, 0.4, 0.6), 1),
        ((0.55, 0.6, 0.4, 0.95), 3),
        ((0.89, 0.5, 0.5, 0.96), 3),
        ((0.89, 0.5, 0.93, 0.5), 0),  # not by the margin
        ((0.92, 0.99, 0.99, 0.99), 0),  # certain as it stands
        ((0.0, 0.34, 0.75, 0.6), 0),  # nothing that is to be trusted
    ],
)
def test_all_turns_compete_with_a_margin_for_upright(trusts, turns):
    faces, taken = find_faces(Bright(trusts), marked(100, 150)[0].movedim(-1, 0))
    assert taken == turns and faces[0].trust == trusts[turns]


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_box_and_mask_lie_in_the_photograph_as_it_came(bright, turns):
    """The face is found in a turned copy; both outputs are for the photograph that is connected."""
    bright(*(0.97 if each == turns else 0.1 for each in range(4)))
    result = make_reference(marked(200, 150), None, FaceOptions(mask_source="landmarks"))
    ((x, y, width, height),) = result.boxes
    assert (width, height) == ((64, 80) if turns % 2 == 0 else (80, 64))
    assert abs(x + width / 2 - 200) <= 1 and abs(y + height / 2 - 150) <= 1
    assert result.photo_mask.shape == (1, 480, 640)
    rows, columns = torch.nonzero(result.photo_mask[0] > 0.5, as_tuple=True)
    assert abs(float(columns.float().mean()) - 200) < 12 and abs(float(rows.float().mean()) - 150) < 12
    assert 0.3 < len(rows) / (width * height) < 1.5
    turned = any(float(pixel) != 0 for pixel in result.overview[0, -8, :8].flatten())  # a note on the lower edge
    assert turned == bool(turns)


def test_a_whole_image_has_a_box_and_a_mask_too(told):
    told()
    result = make_reference(grey(), None, FaceOptions(no_face="whole image"))
    assert result.boxes == ((0, 0, 640, 480),) and float(result.photo_mask.min()) == 1


def test_a_batch_is_one_person(bright):
    bright(0.97)
    photos = torch.cat([marked(100, 150), marked(300, 200), marked(500, 300)])
    result = make_reference(photos, None, FaceOptions())
    singles = [make_reference(photo[None], None, FaceOptions()).reference for photo in photos]
    assert result.reference.crop.equal(singles[0].crop)
    assert [each.key for each in result.reference.more] == [single.key for single in singles[1:]]
    assert len({result.reference.key, *(single.key for single in singles)}) == 4
    assert result.crop.shape[0] == result.mask.shape[0] == result.overview.shape[0] == 3 == len(result.boxes)
    for number, (x, y) in enumerate([(100, 150), (300, 200), (500, 300)]):
        left, top, width, height = result.boxes[number]
        assert left < x < left + width and top < y < top + height
        assert float(result.photo_mask[number, y, x]) == 1


def test_each_photograph_of_a_batch_has_its_own_mask_or_the_only_one(bright):
    bright(0.97)
    photos = torch.cat([marked(100, 150), marked(300, 200)])
    masks = torch.zeros(2, 480, 640)
    masks[0, 130:170, 80:120] = masks[1, 180:220, 280:320] = 1
    result = make_reference(photos, masks, FaceOptions())
    assert [int(mask.sum() / 100) for mask in result.photo_mask] == [16, 16]
    with pytest.raises(ValueError, match="does not cover it"):
        make_reference(photos, masks[:1], FaceOptions())


def test_one_without_a_face_stops_or_is_skipped_and_is_named(bright, caplog):
    bright(0.97)
    photos = torch.cat([marked(100, 150), grey(), marked(500, 300)])
    with pytest.raises(NoFaceError, match="Photograph 2 of 3: No face was found"):
        make_reference(photos, None, FaceOptions(no_face="stop"))
    result = make_reference(photos, None, FaceOptions(no_face="skip"))
    assert len(result.reference.more) == 1 and result.crop.shape[0] == 2
    assert "skips one. Photograph 2 of 3: No face was found" in caplog.text
    assert [float(mask.max()) for mask in result.photo_mask] == [1, 0, 1]
    with pytest.raises(NoFaceError, match="any of the 2 photographs"):
        make_reference(torch.cat([grey(), grey()]), None, FaceOptions(no_face="skip"))
    with pytest.raises(NoFaceError, match="^No face was found"):
        make_reference(grey(), None, FaceOptions(no_face="skip"))


def test_a_list_is_several_people_and_one_without_a_face_does_not_stop_the_others(bright, caplog):
    bright(0.97)
    images = [marked(100, 150), grey(), torch.cat([marked(500, 300), grey()])]
    with pytest.raises(NoFaceError, match="^Entry 2 of 3 in the list: No face was found"):
        make_references(images, [None] * 3, [FaceOptions()] * 3)
    first, third = make_references(images, [None] * 3, [FaceOptions(no_face="skip")] * 3)
    assert first.reference.key == make_reference(images[0], None, FaceOptions()).reference.key
    assert third.reference.key == make_reference(images[2][:1], None, FaceOptions()).reference.key
    for place in ("Entry 2 of 3 in the list: No face", "Entry 3 of 3 in the list, photograph 2 of 2: No face"):
        assert place in caplog.text
    with pytest.raises(NoFaceError, match="any of the 2 photographs"):
        make_references([grey(), grey()], [None] * 2, [FaceOptions(no_face="skip")] * 2)
