"""The embedded model's file keeps to what was promised of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import omniportrait
import pytest
import safetensors
from omniportrait.lab.make import reference
from omniportrait.lab.measures.separation import thresholds
from omniportrait.models.pivot import file as pivot_checkpoint
from PIL import Image

DEMO = Path(omniportrait.__file__).parent / "demo"
WEIGHTS = DEMO / "weights"


def test_the_base_is_small_and_plain_safetensors():
    """At most 28 million parameters in all, under 60 MB, nothing but tensors of the three parts and two small marks."""
    file = WEIGHTS / "omniportrait_demo.safetensors"
    assert file.stat().st_size < 60e6
    with safetensors.safe_open(file, "pt") as tensors:
        sizes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118  no mapping
        kinds = {tensors.get_slice(name).get_dtype() for name in sizes}
    counts = {"model.diffusion_model.": 0, "cond_stage_model.": 0, "first_stage_model.": 0, "": 0}
    for name, shape in sizes.items():
        part = next(part for part in counts if name.startswith(part))
        count = 1
        for side in shape:
            count *= side
        counts[part] += count
    assert sum(counts.values()) <= 28_000_000
    assert all(counts[part] > 1_000_000 for part in counts if part) and counts[""] < 100
    assert kinds <= {"F16", "I64", "U8"}


def test_the_pivot_encoder_is_small_and_fits_the_base():
    """What Pivot Encoder Loader reads, trained, of the text width that the base has; under 20 MB."""
    file = WEIGHTS / "omniportrait_demo_pivot.safetensors"
    assert file.stat().st_size < 20e6
    _, header = pivot_checkpoint.load(file)
    with safetensors.safe_open(WEIGHTS / "omniportrait_demo.safetensors", "pt") as base:
        words = base.get_slice("cond_stage_model.transformer.text_model.embeddings.token_embedding.weight")
        assert header.config.text_dims == (words.get_shape()[1],)
    assert header.config.family == "generic" and header.step > 0


def test_the_cuts_are_there_for_renders_and_for_generated_pictures():
    """Both for faces and for moles; what the autoencoder does to a face moves its cut by little."""
    assert set(json.loads((WEIGHTS / "measures.json").read_text())) == {
        "identity", "detail", "identity_generated", "detail_generated",
    }  # fmt: skip
    drawn, generated = thresholds(), thresholds(generated=True)
    assert generated["detail"] != drawn["detail"] and abs(generated["identity"] - drawn["identity"]) < 0.1


@pytest.mark.parametrize(("words", "name"), [("", "reference.png"), ("--person 4 --view 1", "style.png")])
def test_the_demos_people_are_what_the_command_renders(tmp_path, words, name):
    """But for rounding: another processor's trigonometry may differ in the last bit."""
    reference.main(["--out", str(tmp_path / name), *words.split()])
    made, kept = (np.asarray(Image.open(folder / name), np.int16) for folder in (tmp_path, DEMO))
    assert made.shape == kept.shape == (512, 512, 3)
    assert (np.abs(made - kept) > 3).mean() < 0.001
