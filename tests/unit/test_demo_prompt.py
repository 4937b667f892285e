"""The demo's prompt, without ComfyUI."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from omniportrait import run
from omniportrait.demo import main
from omniportrait.demo import prompt as prompts

CHOICES = dict(checkpoint=None, pivot_encoder=None, prompt=None, subject=None, seed=None, steps=None, size=None)


def kinds(prompt: dict) -> dict[str, dict]:
    return {node["class_type"]: node["inputs"] for node in prompt.values()}


def write_header(path: Path, key: str) -> Path:
    header = json.dumps({key: {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    return path


def test_choices_reach_the_workflow(tmp_path):
    file = write_header(tmp_path / "mine.safetensors", "conditioner.embedders.1.model.ln_final.bias")
    encoder = tmp_path / "encoder.safetensors"
    given = dict(checkpoint=file, pivot_encoder=encoder, prompt="an old man, smiling", seed=7, steps=9)
    built = prompts.build_prompt(prompts.Choices(**(CHOICES | given)))
    prompt = kinds(built)
    assert prompt["CheckpointLoaderSimple"]["ckpt_name"] == os.path.join("chosen", "mine.safetensors")
    loader = prompt["OmniPortraitPivotEncoderLoader"]
    assert loader["pivot_encoder_name"] == os.path.join("chosen", "encoder.safetensors")
    pivots = prompts.nodes(built, "OmniPortraitPivotConditioning")
    plain, pivot = sorted(pivots, key=lambda each: "pivot_encoder" in each)
    assert "pivot_encoder" in pivot and "pivot_encoder" not in plain
    assert {(each["text"], each["subject"]) for each in (plain, pivot)} == {("an old man, smiling", "man")}
    samplers = prompts.nodes(built, "OmniPortraitRBGuidanceKSampler", "KSampler")
    assert [(each["seed"], each["steps"]) for each in samplers] == [(7, 9)] * 4
    assert (prompt["EmptyLatentImage"]["width"], prompt["EmptyLatentImage"]["height"]) == (1024, 1024)


def test_the_demos_encoder_stays_with_the_demos_checkpoint(tmp_path):
    """It is of that family: another checkpoint goes without a pivot encoder, unless one of its own is named."""
    mine = tmp_path / "mine.safetensors"
    mine.touch()
    own = os.path.join("chosen", mine.name)
    for chosen, encoder in ((dict(checkpoint=mine), None), (dict(pivot_encoder=mine), own)):
        prompt = prompts.build_prompt(prompts.Choices(**(CHOICES | chosen)))
        loaders = [n["inputs"] for n in prompt.values() if n["class_type"] == "OmniPortraitPivotEncoderLoader"]
        assert [each["pivot_encoder_name"] for each in loaders] == ([encoder] if encoder else [])
        pivots = prompts.nodes(prompt, "OmniPortraitPivotConditioning")
        assert sum("pivot_encoder" in each for each in pivots) == (1 if encoder else 0) and len(pivots) == 2


def test_the_demos_models_are_in_the_folders_that_comfyui_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(main, "BASE", tmp_path)
    main.prepare_base(None, need_model=True)
    prompt = kinds(prompts.build_prompt(prompts.Choices(**CHOICES)))
    checkpoint = prompt["CheckpointLoaderSimple"]["ckpt_name"]
    encoder = prompt["OmniPortraitPivotEncoderLoader"]["pivot_encoder_name"]
    assert (tmp_path / "models" / "checkpoints" / checkpoint).samefile(main.DEMO_CHECKPOINT)
    assert (tmp_path / "models" / "pivot_encoders" / encoder).samefile(main.DEMO_ENCODER)
    assert (tmp_path / "input" / prompt["LoadImage"]["image"]).is_file()


def test_nothing_chosen_changes_nothing():
    assert prompts.build_prompt(prompts.Choices(**CHOICES)) == json.loads(prompts.WORKFLOW.read_text())


def test_another_checkpoint_is_guided_as_the_nodes_have_it(tmp_path):
    """What the demo's workflow sets for the embedded model alone is taken back; the SD1.5 workflow has it untouched."""
    sd15 = write_header(tmp_path / "sd15.safetensors", "cond_stage_model.x")
    prompt = kinds(prompts.build_prompt(prompts.Choices(**(CHOICES | dict(checkpoint=sd15)))))
    untouched = kinds(json.loads((prompts.WORKFLOW.parent / "pivot_encoder_sd15.json").read_text(encoding="utf-8")))
    made, own = (each["OmniPortraitRBGuidanceKSampler"] for each in (prompt, untouched))
    links = "seed steps cfg sampler_name scheduler".split()  # the sampler's, not the guidance's
    for name, value in own.items():
        if not isinstance(value, list) and name not in links:
            assert made[name] == value, name


def test_size_follows_the_family_but_not_against_the_user(tmp_path):
    sd15 = write_header(tmp_path / "a.safetensors", "cond_stage_model.transformer.text_model.x")
    assert prompts.default_size(sd15) == (512, 512)
    assert prompts.default_size(Path(__file__)) == (512, 512)
    prompt = kinds(prompts.build_prompt(prompts.Choices(**(CHOICES | dict(checkpoint=sd15, size=(640, 768))))))
    assert (prompt["EmptyLatentImage"]["width"], prompt["EmptyLatentImage"]["height"]) == (640, 768)


def test_ic_portraits_samplers_differ_in_the_nets_alone():
    """What is chosen reaches both, or the comparison would show something else."""
    choices = CHOICES | dict(prompt="an old man, smiling", seed=7, steps=9)
    prompt = prompts.build_ic_prompt(prompts.Choices(**choices))
    without, painted = prompts.nodes(prompt, "OmniPortraitICPortraitSampler")
    assert {name for name in painted if painted[name] != without[name]} == {"strength"} and without["strength"] == 0
    assert (painted["seed"], painted["steps"]) == (7, 9)
    told = prompts.node(prompt, "OmniPortraitICConditioning")
    assert (told["text"], told["subject"]) == ("an old man, smiling", "man")
    assert prompts.build_ic_prompt(prompts.Choices(**CHOICES)) == json.loads(prompts.IC_WORKFLOW.read_text())


@pytest.mark.parametrize(
    ("words", "told"),
    [("--ic --checkpoint mine.safetensors", "takes no --checkpoint"), ("--ic --size 256x256", "takes no --size"),
     ("--style other.png", "add --ic")],
)  # fmt: skip
def test_options_that_say_nothing_together_are_refused(words, told):
    with pytest.raises(SystemExit, match=told):
        prompts.check(run.parse(["demo", *words.split()])[0])


def test_prompt_without_a_person_asks_for_the_subject():
    with pytest.raises(SystemExit, match="--subject"):
        prompts.guess_subject("a castle, manor style")
