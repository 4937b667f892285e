"""Which part of a reference's photograph Reference Attention takes, against the renderer's own labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omniportrait.backbone.attention import Recording
from omniportrait.lab.bench.campaign import DEMO
from omniportrait.lab.bench.portraits import Case, conditioned, core, face_of, loaded, node, sitter
from omniportrait.sampling import reference_tokens
from omniportrait.sampling.reference_attention import Settings, patch
from omniportrait.sampling.reference_head import person_map

WALL = (0, 150, 60)


@pytest.fixture(scope="module")
def model():
    """model, clip, vae"""
    return loaded(DEMO / "omniportrait_demo.safetensors")


def taken(model: tuple, face, person: int, monkeypatch) -> torch.Tensor:
    """[S, S] of the crop: what is taken."""
    unet, clip, vae = model
    masks, original = [], reference_tokens.head_mask
    monkeypatch.setattr(reference_tokens, "head_mask", lambda *args: masks.append(original(*args)) or masks[-1])
    reference_tokens.forget_all()
    with torch.inference_mode():
        positive = conditioned(clip, Case(person, 0), face, None)
        (negative,) = node(core.CLIPTextEncode, clip=clip, text="")
        (latent,) = node(core.EmptyLatentImage, width=256, height=256, batch_size=1)
        core.common_ksampler(patch(unet, vae, Settings()), 0, 2, 4, "euler", "normal", positive, negative, latent)
    return masks[0][0] > 0.5


@pytest.mark.parametrize("person", [0, 1, 4, 5])
def test_head_and_hair_are_taken_and_the_wall_behind_them_is_not(model, person, monkeypatch):
    """The first people of either noun, two of each. Without the word the ellipse takes a good deal of the wall."""
    portrait = sitter(person)
    picture = np.where((portrait.labels == 0)[..., None], np.uint8(WALL), portrait.picture)
    face = face_of([picture])
    wall = (face.crop[0] - torch.tensor(WALL) / 255).abs().amax(-1) < 0.02
    found = taken(model, face, person, monkeypatch)
    room = reference_tokens.head_mask(face)[0] > 0.5
    assert (room & wall).sum() > 0.2 * room.sum()
    assert (found & wall).sum() < 0.1 * found.sum()
    assert (found & ~wall).sum() > 0.9 * (room & ~wall).sum()


def test_where_no_attention_was_recorded_nothing_is_told():
    """As where another pack computes it; the ellipse then has to do."""
    assert person_map(Recording(), 5, 77) is None
