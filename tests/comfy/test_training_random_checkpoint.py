"""Checkpoints of random weights are of the true sizes, as ComfyUI sees them."""

from __future__ import annotations

import comfy.model_detection
import comfy.supported_models
import pytest
from omniportrait.training.random_weights import parts

CLIP_L, CLIP_G = 123_060_480, 694_659_840
"""Weights of the published text encoders, bigG's with its projection."""


@pytest.mark.parametrize(
    ("family", "unet", "texts"),
    [
        (comfy.supported_models.SD15, 859_520_964, [CLIP_L + 768 * 768]),
        (comfy.supported_models.SDXL, 2_567_463_684, [CLIP_L + 768 * 768, CLIP_G]),
    ],
)
def test_sizes_are_true_and_comfyui_knows_the_model(family, unet, texts):
    made = parts(family.__name__.lower())
    counted = [sum(weight.numel() for weight in module.parameters()) for module in made.values()]
    assert counted == [unet, 83_653_863, *texts]
    state = {prefix + name: value for prefix, module in made.items() for name, value in module.state_dict().items()}
    assert type(comfy.model_detection.model_config_from_unet(state, "model.diffusion_model.")) is family
