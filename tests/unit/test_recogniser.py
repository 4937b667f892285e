"""How faces are compared: the measures, and files that are no embedder."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from omniportrait.models.faces.face import DetectedFace
from omniportrait.models.faces.facenet import FaceNet
from omniportrait.models.faces.likeness import (
    Likeness,
    by_likeness,
    likeness,
    reference_vector,
    with_threshold,
)
from omniportrait.models.faces.recogniser import Measure, load_recogniser
from omniportrait.models.faces.reference import FaceReference

DISTANCE, COSINE = Measure("distance", 0.6), Measure("cosine", 0.3)
FIVE = ((90.0, 90.0), (160.0, 90.0), (125.0, 130.0), (95.0, 170.0), (155.0, 170.0))


def test_values_are_the_formulas():
    a, b = [0.5, -1.0, 2.0], [1.0, 0.25, -0.5]
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    norms = math.hypot(*a) * math.hypot(*b)
    assert DISTANCE.value(torch.tensor(a), torch.tensor(b)) == pytest.approx(math.dist(a, b), rel=1e-6)
    assert COSINE.value(torch.tensor(a), torch.tensor(b)) == pytest.approx(dot / norms, rel=1e-6)


def test_the_threshold_itself_is_the_same_person():
    assert [DISTANCE.same(value) for value in (0.59, 0.6, 0.61, DISTANCE.worst)] == [True, True, False, False]
    assert [COSINE.same(value) for value in (0.31, 0.3, 0.29, COSINE.worst)] == [True, True, False, False]


@pytest.mark.parametrize("measure", [DISTANCE, COSINE])
def test_the_most_alike_come_first_and_faceless_pictures_last(measure):
    face = DetectedFace((0, 0, 9, 9), FIVE, 1.0)
    results = [
        Likeness(None, measure.worst, False),
        *(Likeness(face, value, False) for value in (0.5, 0.2, 0.9)),
        Likeness(None, measure.worst, False),
    ]
    assert by_likeness(results, measure) == ([2, 1, 3, 0, 4] if measure is DISTANCE else [3, 1, 2, 0, 4])
    judged, own = with_threshold(results, measure, 0.4)
    assert own.threshold == 0.4 and [each.same for each in judged] == [False, measure is COSINE,
        measure is DISTANCE, measure is COSINE, False]  # fmt: skip
    assert with_threshold(results, measure, 0)[1] == measure


class Fixed:
    """A recogniser that reads the embedding off the face's box."""

    name = key = "fixed"

    def __init__(self, measure: Measure) -> None:
        self.measure = measure

    def embed(self, picture, face):
        return torch.tensor([face.box[0], face.box[1]])


def reference(box=(3.0, 4.0, 60.0, 60.0), more=(), landmarks=FIVE):
    return FaceReference(torch.zeros(1, 256, 256, 3), None, (0, 0, 9, 9), "", box, landmarks, more=more)


def test_several_photographs_count_by_their_mean():
    other = reference((0.0, 2.0, 9.0, 9.0))
    assert reference_vector(Fixed(DISTANCE), reference(more=(other,))).tolist() == [1.5, 3.0]
    mean = reference_vector(Fixed(COSINE), reference(more=(other,)))
    assert mean.tolist() == pytest.approx([0.3, 0.9])  # of (0.6, 0.8) and (0, 1)
    with pytest.raises(ValueError, match="holds no face"):
        reference_vector(Fixed(DISTANCE), reference(landmarks=None))


def test_which_of_several_faces_counts():
    near, large = DetectedFace((3.0, 5.0, 9.0, 9.0), FIVE, 1.0), DetectedFace((30.0, 40.0, 200.0, 200.0), FIVE, 1.0)
    doubtful = DetectedFace((3.0, 4.0, 250.0, 250.0), FIVE, 1.0, sure=False)
    detector = SimpleNamespace(detect=lambda picture: [near, doubtful, large])
    picture, target = torch.zeros(3, 320, 320), torch.tensor([3.0, 4.0])
    assert likeness(Fixed(DISTANCE), detector, target, picture).value == pytest.approx(45.0)
    assert likeness(Fixed(DISTANCE), detector, target, picture, "most alike").value == pytest.approx(1.0)
    with pytest.raises(ValueError, match="there are only largest, most alike"):
        likeness(Fixed(DISTANCE), detector, target, picture, "nearest")


def test_a_file_that_is_no_embedder_is_named(tmp_path):
    (tmp_path / "torn.safetensors").write_bytes(b"0" * 20)
    with pytest.raises(ValueError, match="torn.safetensors cannot be read"):
        load_recogniser(tmp_path / "torn.safetensors")
    with torch.random.fork_rng(devices=[]):
        state = {name: value.contiguous() for name, value in FaceNet().state_dict().items()}
    del state["block8.conv2d.bias"]
    safetensors.torch.save_file(state, str(tmp_path / "short.safetensors"))
    with pytest.raises(ValueError, match="first difference is block8.conv2d.bias"):
        load_recogniser(tmp_path / "short.safetensors")
