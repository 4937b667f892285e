"""Switched off, the sampler node is ComfyUI's own KSampler to the last bit, over HTTP."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from conftest import read_api

KSAMPLER = "model seed steps cfg sampler_name scheduler positive negative latent_image denoise".split()


def latent(server, prompt: dict) -> torch.Tensor:
    """Run and read back the saved latent."""
    outputs = server.run(prompt)
    (saved,) = outputs["save"]["latents"]
    return safetensors.torch.load_file(server.base / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"]


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_switched_off_is_bit_equal_to_ksampler(server, sampler):
    prompt = read_api("omniportrait_demo")
    (sampling,) = (key for key, node in prompt.items() if node["class_type"] == "OmniPortraitRBGuidanceKSampler")
    keep = {"CheckpointLoaderSimple", "LoadImage", "OmniPortraitFaceReference", "OmniPortraitPivotConditioning"}
    keep |= {"OmniPortraitPivotEncoderLoader", "CLIPTextEncode", "EmptyLatentImage", "OmniPortraitRBGuidanceKSampler"}
    keep |= {"OmniPortraitReferenceAttention"}
    prompt = {key: node for key, node in prompt.items() if node["class_type"] in keep}
    ours = prompt[sampling]["inputs"] | {"sampler_name": sampler}
    prompt["save"] = {"class_type": "SaveLatent", "inputs": {"samples": [sampling, 0], "filename_prefix": "equality"}}

    prompt[sampling] = {"class_type": "KSampler", "inputs": {name: ours[name] for name in KSAMPLER}}
    plain = latent(server, prompt)
    for off in ({"strength": 0.0}, {"u": 0.0}):
        prompt[sampling] = {"class_type": "OmniPortraitRBGuidanceKSampler", "inputs": ours | off}
        assert torch.equal(latent(server, prompt), plain), off
    prompt[sampling] = {"class_type": "OmniPortraitRBGuidanceKSampler", "inputs": ours | {"u": 1.0}}
    assert not torch.equal(latent(server, prompt), plain), "the guidance did nothing, so the comparison says nothing"
