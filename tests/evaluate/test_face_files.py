"""Face embedders by file: FaceNet against facenet-pytorch, and an ONNX file by onnxruntime."""

from __future__ import annotations

import sys

import numpy as np
import onnx_file
import pytest
import safetensors.torch
import torch
from omniportrait.models.faces.embedder import chips
from omniportrait.models.faces.face import DetectedFace
from omniportrait.models.faces.recogniser import ARCFACE, load_recogniser

FACE = DetectedFace(
    (20.4, 10.2, 180.6, 205.0), ((70.0, 80.0), (130.0, 78.0), (101.0, 115.0), (78.0, 150.0), (125.0, 149.0)), 1.0
)


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    return torch.rand(3, 240, 220, generator=torch.Generator().manual_seed(5))


def test_facenet_is_facenet_pytorchs(tmp_path, picture):
    from facenet_pytorch import InceptionResnetV1
    from facenet_pytorch.models.utils.detect_face import extract_face

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        theirs = InceptionResnetV1(classify=False, num_classes=10).eval()
        for module in theirs.modules():
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
                torch.nn.init.uniform_(module.weight, 0.8, 1.2)
                torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
    safetensors.torch.save_file(theirs.state_dict(), str(tmp_path / "facenet.safetensors"))
    ours = load_recogniser(tmp_path / "facenet.safetensors")
    vector = ours.embed(picture, FACE)
    with torch.no_grad():
        crop = torch.nn.functional.interpolate(
            picture[None, :, 10:205, 20:181], (160, 160), mode="bicubic", antialias=True
        ).clamp(0, 1)
        expected = theirs((crop * 255 - 127.5) / 128)[0]
        theirs_crop = extract_face((picture.movedim(0, -1) * 255).byte().numpy(), list(FACE.box), 160)
        by_their_crop = theirs((theirs_crop[None] - 127.5) / 128)[0]
    assert torch.allclose(vector, expected, atol=1e-5)
    assert float(torch.cosine_similarity(vector, by_their_crop, dim=0)) > 0.9  # they resize in another way
    assert ours.measure.kind == "cosine" and len(vector) == 512


def test_onnx_gets_aligned_faces(tmp_path, picture):
    weights = np.random.default_rng(1).normal(size=(3 * 112 * 112, 7))
    (tmp_path / "small.onnx").write_bytes(onnx_file.projection(weights, (1, 3, 112, 112)))
    vector = load_recogniser(tmp_path / "small.onnx").embed(picture, FACE)
    chip = chips(picture[None], torch.tensor([FACE.landmarks]), torch.tensor(ARCFACE), 112)[0]
    assert np.allclose(vector, (chip.numpy().reshape(-1) * 2 - 1) @ weights, rtol=1e-3, atol=1e-3)
    middle = torch.tensor(FACE.landmarks).mean(0), torch.tensor(ARCFACE).mean(0)
    seen, there = (
        chip[:, round(float(middle[1][1])), round(float(middle[1][0]))],
        picture[:, int(middle[0][1]), int(middle[0][0])],
    )
    assert chip.shape == (3, 112, 112) and float((seen - there).abs().mean()) < 0.5


def test_files_that_cannot_serve(tmp_path, monkeypatch):
    (tmp_path / "other.onnx").write_bytes(onnx_file.projection(np.ones((3 * 64 * 64, 2)), (1, 3, 64, 64)))
    with pytest.raises(ValueError, match=r"takes face \[1, 3, 64, 64\], but a face embedder takes"):
        load_recogniser(tmp_path / "other.onnx")
    (tmp_path / "torn.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match="torn.onnx cannot be read as ONNX"):
        load_recogniser(tmp_path / "torn.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="needs the package onnxruntime"):
        load_recogniser(tmp_path / "torn.onnx")
