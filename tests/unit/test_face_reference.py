"""Choice among faces, crops, masks and policies, with a detector that finds what the test says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omniportrait.models.faces import build as build_module
from omniportrait.models.faces.build import FaceOptions, NoFaceError, make_reference, make_references
from omniportrait.models.faces.detector import ORDERS, Backend, arrange, find_faces
from omniportrait.models.faces.face import DetectedFace
from omniportrait.models.faces.mask import face_oval, near_face


def face_at(x: float, y: float, size: float, score: float = 0.99, trust: float = 0.97) -> DetectedFace:
    """A frontal face whose box is 0.8 size x size around (x, y); doubtful below a trust of 0.65."""
    marks = ((-0.2, -0.12), (0.2, -0.12), (0.0, 0.08), (-0.16, 0.27), (0.16, 0.27))
    return DetectedFace(
        (x - 0.4 * size, y - size / 2, x + 0.4 * size, y + size / 2),
        tuple((x + dx * size, y + dy * size) for dx, dy in marks),
        score,
        trust,
        trust >= 0.65,
    )


class Told:
    """A detector that finds the given faces, in pictures that are not resized (longer side 320 to 1024)."""

    name = "told"

    def __init__(self, *faces: DetectedFace) -> None:
        self.faces = list(faces)

    def detect(self, picture: torch.Tensor) -> list[DetectedFace]:
        return self.faces


class Painted:
    """A parser that takes bright pixels for skin."""

    name = "painted"

    def parse(self, crop: torch.Tensor) -> torch.Tensor:
        return (crop.mean(0) > 0.5).float()


@pytest.fixture
def told(monkeypatch):
    """told(*faces, parser=None): from here on these faces are found."""

    def tell(*faces: DetectedFace, parser=None) -> None:
        monkeypatch.setattr(build_module, "choose_backend", lambda name, folders: Backend(Told(*faces), parser))

    return tell


def grey(height: int = 480, width: int = 640, value: float = 0.25) -> torch.Tensor:
    return torch.full((1, height, width, 3), value)


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


class Bright:
    """A detector that finds a face around the brightest pixel; none in an even picture."""

    name = "bright"

    def __init__(self, trusts: tuple[float, ...] = (0.97,)) -> None:
        self.trusts = trusts  # by quarter turn

    def detect(self, picture: torch.Tensor) -> list[DetectedFace]:
        value, at = picture[0].flatten().max(0)
        if float(value - picture.min()) < 0.1:
            return []
        y, x = divmod(int(at), picture.shape[-1])
        corner = picture[2, [0, 0, -1, -1], [0, -1, -1, 0]]  # 1 in the upright picture's upper left corner
        return [face_at(x + 0.5, y + 0.5, 80, 0.99, self.trusts[-int(corner.argmax()) % len(self.trusts)])]


def marked(x: int, y: int, height: int = 480, width: int = 640) -> torch.Tensor:
    """A photograph in which `Bright` finds a face, and whose upper left corner is known."""
    photo = grey(height, width, 0.0)
    photo[0, y, x, 0] = photo[0, 0, 0, 2] = 1.0
    return photo


@pytest.fixture
def bright(monkeypatch):
    def tell(*trusts: float) -> None:
        monkeypatch.setattr(build_module, "choose_backend", lambda name, folders: Backend(Bright(trusts), None))

    return tell


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
