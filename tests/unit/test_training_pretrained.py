"""An open_clip checkpoint as a start: whose weights, and how its pictures were normalised."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from omniportrait.models.pivot.encoder import CLIP_MEAN, CLIP_STD, PivotConfig, PivotEncoder, TowerConfig, prepare_face
from omniportrait.training.pivot import config as settings
from omniportrait.training.pivot.pretrained import as_trained, make_encoder, read_tower
from omniportrait.training.report import cut_log
from safetensors.torch import save_file

SMALL = TowerConfig(image_size=28, patch_size=14, width=16, layers=1, head_width=8)
LAION = "ViT-L-14/laion2b_s32b_b82k"


def weights() -> dict[str, torch.Tensor]:
    """A tower as open_clip saves it, with a text encoder that is not wanted."""
    torch.manual_seed(3)
    tower = PivotEncoder(PivotConfig("generic", (8,), SMALL)).tower.state_dict()
    return {f"visual.{name}": value.clone() for name, value in tower.items()} | {"text_projection": torch.zeros(2)}


def test_normalisation_comes_from_open_clips_table(tmp_path):
    """The file that the recipes name was trained with a mean and a deviation of a half, unlike the other ViT-L/14."""
    laion = as_trained(TowerConfig(), tmp_path / "weights.bin", LAION)
    assert laion == replace(TowerConfig(), mean=(0.5,) * 3, std=(0.5,) * 3)
    openai = as_trained(TowerConfig(), tmp_path / "weights.bin", "ViT-L-14/openai")
    assert openai == replace(TowerConfig(), mean=CLIP_MEAN, std=CLIP_STD, quick_gelu=True)
    assert as_trained(SMALL, tmp_path / "weights.bin", None) is SMALL
    assert all(settings.read(recipe).pretrained_tag == LAION for recipe in ("sd15", "sdxl"))


def test_open_clips_own_file_beside_the_weights_comes_first(tmp_path):
    told = {"model_cfg": {"embed_dim": 768}, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    found = as_trained(SMALL, tmp_path / "open_clip_model.safetensors", LAION)
    assert found == replace(SMALL, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"preprocess_cfg": {"mean": "grey", "std": [1, 1, 1]}}'])
def test_what_says_nothing_is_one_sentence(tmp_path, content):
    with pytest.raises(ValueError, match="mend pretrained_tag"):
        as_trained(SMALL, tmp_path / "weights.bin", "ViT-L-14/no_such_weights")
    (tmp_path / "open_clip_config.json").write_text(content)
    with pytest.raises(ValueError, match="does not say how pictures are normalised"):
        as_trained(SMALL, tmp_path / "weights.bin", LAION)


def test_tower_sees_pictures_in_its_own_normalisation():
    torch.manual_seed(0)
    made = PivotEncoder(PivotConfig("generic", (8,), replace(SMALL, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))))
    picture = torch.rand(2, 28, 28, 3)
    own = (picture - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.5, 0.25, 0.2])
    expected = made.projections[0](made.tower(own.movedim(-1, 1)))
    torch.testing.assert_close(made.reference(prepare_face(picture, 28)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "training"])
def test_new_encoder_starts_from_the_file(tmp_path, kind):
    path = tmp_path / ("tower.safetensors" if kind == "safetensors" else "tower.bin")
    if kind == "safetensors":
        save_file(weights(), path)
    elif kind == "bin":
        torch.save(weights(), path)
    else:  # as open_clip's own training saves
        torch.save({"epoch": 1, "state_dict": {f"module.{name}": value for name, value in weights().items()}}, path)
    given = {"tower": {"image_size": 28, "patch_size": 14, "width": 16, "layers": 1, "head_width": 8}}
    config = settings.read("sd15", given | {"pretrained": str(path)})
    made = make_encoder(config, 768)
    assert torch.equal(made.tower.conv1.weight, weights()["visual.conv1.weight"])
    assert made.config.tower == replace(SMALL, mean=(0.5,) * 3, std=(0.5,) * 3)
    random = make_encoder(replace(config, pretrained=None), 768)
    assert not torch.equal(random.tower.conv1.weight, made.tower.conv1.weight)


def test_a_tower_that_would_stay_random_is_refused():
    config = settings.read("demo")
    with pytest.raises(ValueError, match="would stay so.*pretrained=FILE"):
        make_encoder(config, 8)
    learning = settings.read("demo", {"trainable_layers": None, "tower": asdict(SMALL)})
    assert all(each.requires_grad for each in make_encoder(learning, 8).tower.parameters())


def test_other_files_are_told_by_what_they_are(tmp_path):
    with pytest.raises(ValueError, match="There is no file"):
        read_tower(tmp_path / "none.bin")
    (tmp_path / "page.bin").write_bytes(b"<!DOCTYPE html>")
    (tmp_path / "cut.safetensors").write_bytes(b"12345678")
    for name in ("page.bin", "cut.safetensors"):
        with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
            read_tower(tmp_path / name)
    encoder = PivotEncoder(PivotConfig("generic", (8,), SMALL))
    with pytest.raises(ValueError, match="transformers names them.*open_clip_pytorch_model.bin"):
        encoder.load_pretrained_tower({"vision_model.embeddings.class_embedding": torch.zeros(16)})
    with pytest.raises(ValueError, match="of another kind"):
        encoder.load_pretrained_tower({})
    with pytest.raises(ValueError, match="do not fit the image tower"):
        encoder.load_pretrained_tower({"visual.conv1.weight": torch.zeros(1)})


# What a killed process leaves


def test_log_does_not_tell_a_step_twice(tmp_path):
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 6)]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, '{"step": 6, "lo']))
    cut_log(tmp_path / "log.jsonl", 3)
    assert (tmp_path / "log.jsonl").read_text().splitlines() == lines[:3]
    cut_log(tmp_path / "log.jsonl", 0)
    assert (tmp_path / "log.jsonl").read_text() == ""
    cut_log(tmp_path / "none.jsonl", 0)
    assert not (tmp_path / "none.jsonl").exists()
