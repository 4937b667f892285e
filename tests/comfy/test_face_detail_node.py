"""Face Detail as ComfyUI runs it: a photograph beside a picture without a face, on a small model."""

from __future__ import annotations

import pytest
import torch
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import core
from omniportrait.nodes.face_detail import FaceDetail
from omniportrait.sampling.detail import LEAVE

HOW = {
    "seed": 3, "steps": 2, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.5, "side": 256,
    "order": "largest", "index": 0, "crop_factor": 2.0, "grow": 0.05, "feather": 0.05, "no_face": LEAVE,
    "detector": "built-in",
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """A woman's portrait, 256 pixels square, and grey."""
    from skimage import data

    face = torch.from_numpy(data.astronaut()[:256, 96:352].copy()).float() / 255
    return torch.stack([face, torch.full_like(face, 0.5)])


def paint(model, vae, pictures, **changed) -> tuple:
    positive, negative = small.conditioning(model, 1), small.conditioning(model, 2)
    inputs = {"model": model, "vae": vae, "positive": positive, "negative": negative, "image": pictures}
    return core(FaceDetail, **inputs | HOW | changed)


def test_only_the_face_is_painted(sd15, vae, pictures):
    """The face's picture changes inside the mask alone; the one without a face is left to the bit."""
    image, crop, mask, latent = paint(sd15, vae, pictures)
    assert image.shape == pictures.shape and crop.shape == (2, 256, 256, 3) and latent["samples"].shape[-1] == 32
    changed = (image != pictures).any(dim=-1)
    assert changed[0].any() and not changed[0][mask[0] == 0].any() and 0.02 < (mask[0] > 0).float().mean() < 0.5
    rows, columns = torch.nonzero(mask[0] > 0.9, as_tuple=True)
    assert 60 < rows.float().mean() < 170 and 90 < columns.float().mean() < 170  # where her face is
    assert torch.equal(image[1], pictures[1]) and not mask[1].any() and not crop[1].any()


def test_a_picture_without_a_face(sd15, vae, pictures):
    with pytest.raises(ValueError, match="No face was found in the photograph"):
        paint(sd15, vae, pictures[1:], no_face="stop")
    with pytest.raises(ValueError, match="no no_face 'go on'; choose stop or leave the picture"):
        paint(sd15, vae, pictures[1:], no_face="go on")
