"""Bad inputs come back as node errors with a sentence for people, and the server goes on."""

from __future__ import annotations

import itertools

import numpy
import pytest
import torch
from conftest import read_api
from omniportrait.demo.server import PromptError
from PIL import Image

seeds = itertools.count(1000)


def small(name: str = "omniportrait_demo") -> dict:
    """A workflow at 128 pixels and two steps, with a seed that no run before it had."""
    prompt = read_api(name)
    inputs(prompt, "EmptyLatentImage").update(width=128, height=128)
    inputs(prompt, "OmniPortraitRBGuidanceKSampler").update(steps=2, seed=next(seeds))
    return prompt


def inputs(prompt: dict, kind: str) -> dict:
    return next(node["inputs"] for node in prompt.values() if node["class_type"] == kind)


def no_face(prompt, base):
    picture = numpy.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=numpy.uint8)
    Image.fromarray(picture).save(base / "input" / "noise.png")
    inputs(prompt, "LoadImage")["image"] = "noise.png"


def face_out_of_range(prompt, base):
    inputs(prompt, "OmniPortraitFaceReference")["index"] = 7


def broken_image(prompt, base):
    prompt["broken"] = {"class_type": "StandinBrokenImage", "inputs": {}}
    inputs(prompt, "OmniPortraitFaceReference")["image"] = ["broken", 0]


def absent_word(prompt, base):
    inputs(prompt, "OmniPortraitPivotConditioning")["subject"] = "zebra"


def absent_occurrence(prompt, base):
    inputs(prompt, "OmniPortraitPivotConditioning")["occurrence"] = 3


def empty_region(prompt, base):
    prompt["empty"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 64, "height": 64}}
    inputs(prompt, "OmniPortraitPivotConditioning")["region"] = ["empty", 0]


def no_record(prompt, base):
    negative = inputs(prompt, "OmniPortraitRBGuidanceKSampler")["negative"]
    inputs(prompt, "OmniPortraitRBGuidanceKSampler")["positive"] = negative


def flow_model(prompt, base):
    prompt["flow"] = {"class_type": "ModelSamplingSD3", "inputs": {"model": ["1", 0], "shift": 3.0}}
    inputs(prompt, "OmniPortraitRBGuidanceKSampler")["model"] = ["flow", 0]


def encoder_of_another_family(prompt, base):
    use_encoder(prompt, "omniportrait_pivot_sdxl.safetensors")


def missing_encoder(prompt, base):
    use_encoder(prompt, "nowhere.safetensors")


def pickled_encoder(prompt, base):
    torch.save({"weight": torch.zeros(3)}, base / "models" / "pivot_encoders" / "pickled.safetensors")
    use_encoder(prompt, "pickled.safetensors")


def use_encoder(prompt: dict, name: str) -> None:
    prompt["encoder"] = {"class_type": "OmniPortraitPivotEncoderLoader", "inputs": {"pivot_encoder_name": name}}
    inputs(prompt, "OmniPortraitPivotConditioning")["pivot_encoder"] = ["encoder", 0]


CASES = [
    (no_face, "OmniPortraitFaceReference: No face was found"),
    (face_out_of_range, "OmniPortraitFaceReference: Face number 7 was asked for"),
    (broken_image, "OmniPortraitFaceReference: The photograph contains NaN"),
    (absent_word, 'OmniPortraitPivotConditioning: The text does not hold the subject "zebra"'),
    (absent_occurrence, "OmniPortraitPivotConditioning: The text holds"),
    (empty_region, "OmniPortraitPivotConditioning: The region mask is empty"),
    (no_record, "OmniPortraitRBGuidanceKSampler: The positive conditioning does not say which person"),
    (flow_model, "OmniPortraitRBGuidanceKSampler: OmniPortrait needs a Stable Diffusion"),
    (encoder_of_another_family, "OmniPortraitPivotConditioning: The pivot encoder omniportrait_pivot_sdxl"),
    (missing_encoder, "OmniPortraitPivotEncoderLoader: "),
    (pickled_encoder, "OmniPortraitPivotEncoderLoader: pickled.safetensors is a pickled checkpoint"),
]
OUR_WORDS = {missing_encoder: 'There is no pivot encoder "nowhere.safetensors"'}


@pytest.mark.parametrize(("spoil", "sentence"), CASES, ids=[case[0].__name__ for case in CASES])
def test_bad_input_is_explained_and_the_next_prompt_runs(server, spoil, sentence):
    prompt = small()
    spoil(prompt, server.base)
    with pytest.raises(PromptError) as refusal:
        server.run(prompt)
    assert str(refusal.value).startswith(sentence)
    assert OUR_WORDS.get(spoil, "") in str(refusal.value)
    good = small()
    saving = {node_id for node_id, node in good.items() if node["class_type"] == "SaveImage"}
    outputs = server.run(good)
    files = {key: [image["type"] for image in each.get("images", ())] for key, each in outputs.items()}
    assert {key for key, kinds in files.items() if "output" in kinds} == saving  # others show theirs inside the node
    assert server.run(good) == outputs  # all from the cache, which ComfyUI leaves out of its answer
