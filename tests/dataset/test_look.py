"""One upright face, a person around it, a noun: by the built-in detector on a real face, and by what it may say."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from omniportrait.lab.make.web import background, bodies, head, jpeg, portrait
from omniportrait.models.faces.detector import Backend, choose_backend
from omniportrait.models.faces.face import DetectedFace
from omniportrait.models.faces.mtcnn import BuiltInDetector
from omniportrait.training.data.index import EMPTY_MASK, TWO_FACES, BadSample
from omniportrait.training.dataset import look, reasons
from omniportrait.training.dataset.recipe import Face, Recipe, read
from PIL import Image

ROW = {"uid": 7, "url": "http://x/", "text": "a woman in orange", "source": "meta", "license": ""}


@pytest.fixture(scope="module")
def looks():
    return look.Look(Recipe())


class Told:
    """A detector that says what it is told."""

    name = "told"

    def __init__(self, *faces: DetectedFace) -> None:
        self.faces = faces

    def detect(self, picture: torch.Tensor) -> list[DetectedFace]:
        return list(self.faces)


def face(x0: float, y0: float, side: float, lean: float = 0.0) -> DetectedFace:
    """lean: pixels by which the mouth is to the right of the eyes, half a side below."""
    points = [(0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.9), (0.65, 0.9)]
    landmarks = tuple((x0 + x * side + (lean if y == 0.9 else 0), y0 + y * side) for x, y in points)
    return DetectedFace((x0, y0, x0 + side, y0 + side), landmarks, 0.99)


def verdict(*faces: DetectedFace) -> DetectedFace:
    picture = Image.new("RGB", (480, 480))
    return look.only_face(picture, look.reduced(picture, 480), Backend(Told(*faces), None), Face())


@pytest.mark.parametrize("name, reason", [("nobody", reasons.NO_FACE), ("two", TWO_FACES), ("far", reasons.SMALL_FACE)])
def test_pictures_that_are_no_portraits(looks, name, reason):
    with pytest.raises(BadSample, match=reason):
        looks(ROW, bodies()[name])


def test_a_portrait_becomes_a_sample(looks):
    sample = looks(ROW, jpeg(portrait(3)))
    described = json.loads(sample.files["json"])
    assert described["caption"] == ROW["text"] and described["subject"] == "woman" and described["faces"] == 1
    x0, y0, x1, y1 = described["face_box"]
    mask = Image.open(io.BytesIO(sample.files["mask.png"])).resize((640, 640))
    inside = np.zeros((640, 640), bool)
    inside[round(y0) : round(y1), round(x0) : round(x1)] = True
    white = np.array(mask) > 127
    assert white.sum() > 0.5 * inside.sum() and (white & inside).sum() > 0.75 * white.sum()
    assert Image.open(io.BytesIO(sample.files["jpg"])).size == (640, 640)


@pytest.mark.parametrize("side", [120, 170, 260, 420])
def test_the_short_looks_find_what_the_long_one_finds(side):
    """The whole picture at once, down to faces of 20 pixels, is the reference."""
    picture = portrait(4, 960, side)
    backend = choose_backend("built-in", ())
    found = look.only_face(picture, look.reduced(picture, look.FIRST_SIDE), backend, Face())
    pixels, scale = look.reduced(picture, 1024)
    (whole,) = (each.mapped(1 / scale) for each in BuiltInDetector().detect(pixels) if each.sure)
    assert look.share_inside(found.box, whole.box) > 0.8 and look.share_inside(whole.box, found.box) > 0.8


@pytest.mark.parametrize(("side", "counts"), [(105, True), (60, False)])
def test_a_second_face_counts_from_a_third_of_the_first_ones_side(side, counts):
    picture = background(5, 960, 960)
    picture.paste(head().resize((300, 300)), (60, 200))
    picture.paste(head().resize((side, side), Image.Resampling.BICUBIC), (700, 300))
    small = look.reduced(picture, look.FIRST_SIDE)
    refused = pytest.raises(BadSample, match=TWO_FACES) if counts else contextlib.nullcontext()
    with refused:
        look.only_face(picture, small, choose_backend("built-in", ()), Face())


def test_detector_looks_only_for_the_sizes_it_is_told(monkeypatch):
    pixels, _ = look.reduced(portrait(6, 640, 300), 480)
    assert BuiltInDetector(40.0).detect(pixels) and not BuiltInDetector(24.0, 40.0).detect(pixels)


def test_which_faces_count():
    assert verdict(face(100, 100, 200)).box == (100, 100, 300, 300)
    assert verdict(face(100, 100, 200), face(350, 350, 60)).box[0] == 100  # a tenth of the area is 63 pixels
    for faces, reason in (
        ((), reasons.NO_FACE), ((face(100, 100, 200), face(350, 350, 64)), TWO_FACES),
        ((face(100, 100, 47),), reasons.SMALL_FACE), ((face(100, 100, 200, 70),), reasons.NOT_UPRIGHT),
    ):  # fmt: skip
        with pytest.raises(BadSample, match=reason):
            verdict(*faces)
    assert look.roll(face(0, 0, 200, 100)) == pytest.approx(45.0)


@pytest.mark.parametrize(
    "caption, nouns, result",
    [
        ("an old man and his dog", "adults", "man"), ("A WOMAN", "adults", "woman"),
        ("a castle", "adults", reasons.NO_NOUN),
        ("humans", "adults", reasons.NO_NOUN), ("a girl", "adults", reasons.CHILD),
        ("a mother and child", "adults", reasons.CHILD),
        ("a girl", "all", "girl"),
    ],
)  # fmt: skip
def test_nouns(caption, nouns, result):
    looks = look.Look(read("plain", {"nouns": nouns}))
    if result in (reasons.NO_NOUN, reasons.CHILD):
        with pytest.raises(BadSample, match=result):
            looks.noun(caption)
    else:
        assert looks.noun(caption) == result


def test_the_person_around_the_face(looks, monkeypatch):
    content = jpeg(portrait(3))
    box = looks(ROW, content).entry["face_box"]
    around = (box[0] - 50, box[1] - 50, box[2] + 50, 640.0)
    monkeypatch.setattr(looks, "persons", lambda picture: [(0.0, 0.0, 640.0, 640.0), around])
    assert looks(ROW, content).entry["person_box"] == pytest.approx(around, abs=0.1)  # the tighter one
    monkeypatch.setattr(looks, "persons", lambda picture: [(box[0], box[1], box[2], (box[1] + box[3]) / 2)])
    with pytest.raises(BadSample, match=reasons.NO_PERSON):
        looks(ROW, content)


def test_an_empty_mask(looks, monkeypatch):
    monkeypatch.setattr(look, "face_mask", lambda pixels, *_: torch.zeros(pixels.shape[1:]))
    with pytest.raises(BadSample, match=EMPTY_MASK):
        looks(ROW, jpeg(portrait(3)))


def test_captions_of_a_model_decide_the_noun(looks, monkeypatch):
    monkeypatch.setattr(looks, "captions", lambda picture: "a lady at a desk")
    described = json.loads(looks(ROW | {"text": "IMG_1234"}, jpeg(portrait(3))).files["json"])
    assert (described["caption"], described["subject"]) == ("a lady at a desk", "lady")


def test_hashes_of_near_copies_and_of_others():
    one = portrait(11)
    again = Image.open(io.BytesIO(jpeg(one.resize((600, 600)))))

    def apart(a: Image.Image, b: Image.Image) -> int:
        return (look.near_hash(a) ^ look.near_hash(b)).bit_count()

    assert apart(one, again) <= 2 and apart(one, one.convert("L").convert("RGB")) <= 2
    assert min(apart(one, portrait(seed)) for seed in range(12, 30)) > 2
