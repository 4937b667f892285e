"""Identity Score and Best of Batch as ComfyUI runs them, on two real photographs."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from omniportrait.demo.main import second_photo
from omniportrait.models.faces.build import FaceOptions, make_reference
from PIL import Image

DEFAULTS = {"embedder": "built-in", "threshold": 0.0, "face": "largest"}
SIDE = 320


def image_of(pixels: np.ndarray) -> torch.Tensor:
    picture = torch.from_numpy(pixels.copy()).movedim(-1, 0)[None].float() / 255
    return F.interpolate(picture, (SIDE, SIDE), mode="bilinear", antialias=True).movedim(1, -1)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """[4, H, W, 3]: nobody, another person, the person mirrored and darker, the person."""
    own = image_of(np.array(skimage.data.astronaut())[:320, 60:380])
    with Image.open(second_photo()) as file:
        other = image_of(np.array(file.convert("RGB"))[40:500, 20:480])
    return torch.cat([torch.full_like(own, 0.4), other, (own * 0.8).flip(2), own])


@pytest.fixture(scope="module")
def reference(pictures):
    return make_reference(pictures[3:], None, FaceOptions(detector="built-in")).reference


def run(node: str, **inputs) -> tuple:
    """As ComfyUI runs it, and nothing is left of it in the random state."""
    from omniportrait.nodes.best_of_batch import BestOfBatch
    from omniportrait.nodes.identity_score import IdentityScore

    before = torch.get_rng_state()
    with torch.inference_mode():
        result = {"score": IdentityScore, "best": BestOfBatch}[node].execute(**DEFAULTS | inputs).result
    assert torch.equal(before, torch.get_rng_state())
    return tuple(result)


def test_score(pictures, reference):
    scores, same, sheet, report = run("score", image=pictures, face_reference=reference)
    nobody, other, mirrored, own = scores
    assert nobody == float("inf") and own < mirrored < 0.5 < 0.6 < other
    assert same == [False, False, True, True]
    assert sheet.shape[0] == 4 and sheet.shape[-1] == 3 and float(sheet.std()) > 0.05
    lines = report.splitlines()
    assert "at most 0.6" in lines[0] and lines[1] == "picture 1: no face found" and "same person" in lines[4]


def test_another_threshold_changes_the_verdict_and_not_the_number(pictures, reference):
    scores, same, *_ = run("score", image=pictures[1:3], face_reference=reference, threshold=2.0)
    assert same == [True, True] and scores == run("score", image=pictures[1:3], face_reference=reference)[0]


def test_best(pictures, reference):
    best, everything, sheet, report = run("best", image=pictures, face_reference=reference, keep=2)
    assert torch.equal(best, pictures[[3, 2]]) and torch.equal(everything, pictures[[3, 2, 1, 0]])
    lines = report.splitlines()
    assert lines[1].startswith("1. picture 4: distance") and lines[3] == "kept 2 of 4; the others:"
    assert lines[5] == "4. picture 1: no face found" and len(sheet) == 4
    assert len(run("best", image=pictures[:1], face_reference=reference, keep=9)[0]) == 1


def test_a_file_that_is_not_there(pictures, reference):
    from omniportrait.nodes import register_model_folders

    register_model_folders()
    with pytest.raises(ValueError, match='no face embedder "gone.onnx": put the file into .*face_embedders'):
        run("score", image=pictures, face_reference=reference, embedder="gone.onnx")
