"""Files of a small pivot encoder, whole and spoiled, and the sentence with which one is refused."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from omniportrait.models.pivot.encoder import PivotConfig, PivotEncoder, TowerConfig
from omniportrait.models.pivot.file import read_header
from safetensors.torch import save_file

TOWER = TowerConfig(image_size=28, patch_size=14, width=16, layers=1, head_width=8, mlp_ratio=1.5, quick_gelu=True)
CONFIG = PivotConfig("generic", (8, 12), TOWER, "mlp")
NAME = "portrait.safetensors"


def encoder(config: PivotConfig = CONFIG, seed: int = 0) -> PivotEncoder:
    torch.manual_seed(seed)
    made = PivotEncoder(config)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight))
    return made


def metadata(**changed: str | None) -> dict[str, str]:
    """The header of CONFIG as the file format's description says, written by hand."""
    told = {
        "format": "omniportrait-pivot-encoder",
        "format_version": "1",
        "base_family": "generic",
        "text_dims": "[8, 12]",
        "tower": json.dumps(asdict(TOWER)),
        "fusion": "mlp",
        "training_step": "7",
    }
    return {key: value for key, value in (told | changed).items() if value is not None}


def tower(**changed) -> str:
    return json.dumps(asdict(TOWER) | changed)


def write(path, weights: dict[str, torch.Tensor] | None = None, **changed: str | None):
    save_file(dict(encoder().state_dict()) if weights is None else weights, path, metadata(**changed))
    return path


def refusal(path, read=read_header) -> str:
    """The sentence with which the file is refused: one, with its name, no traceback's language."""
    with pytest.raises(ValueError) as caught:
        read(path)
    sentence = str(caught.value)
    assert sentence.startswith(path.name) and sentence.endswith(".")
    assert ". " not in sentence and "\n" not in sentence
    return sentence
