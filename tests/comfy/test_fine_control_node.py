"""Fine Control Map on small models of SD1.5's and SDXL's form, run as ComfyUI runs it."""

from __future__ import annotations

import logging

import comfy.sd
import pytest
import torch
from omniportrait.guidance.spf_portrait import control_map
from omniportrait.lab.testbed import small, texts
from omniportrait.nodes.fine_control_map import FineControlMap
from omniportrait.sampling.dual_look import sigmas_around
from omniportrait.sampling.phrases import columns_of, complete_text, phrases_of

BASE, TARGET = "a woman in a red coat in a park", "wearing a hat"
INPUTS = {
    "base_text": BASE, "target_text": TARGET, "seed": 3, "percent": 0.6, "looks": 2, "phrases": "", "blur": 3,
    "gain": 3.0, "subtract": 1.0, "distance": "states", "reading": "measured",
}  # fmt: skip


def tuned(model):
    with torch.inference_mode():
        return comfy.sd.load_lora_for_models(model, None, small.lora(model, scale=0.5), 1.0, 0.0)[0]


def run(model, family: str = "sd15", tuned_model=None, image=None, batch: int = 1, **changes) -> tuple:
    latent = torch.randn(batch, 4, 16, 24, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return FineControlMap.execute(
            model, texts.clip(family), latent={"samples": latent}, tuned_model=tuned_model, image=image,
            **(INPUTS | changes),
        ).result  # fmt: skip


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_map_is_the_equations_of_two_calls_of_the_models(family):
    """By the models' own predictions, one sampling step each, and attention from hooks on the loaded model."""
    model = getattr(small, family)()
    other, clip = tuned(model), texts.clip(family)
    mask, _, _ = run(model, family, other, looks=1, subtract=0.0, gain=1.0)
    (sigma,) = sigmas_around(model, 0.6, 1)
    latent = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    x = model.model.process_latent_in(latent) + sigma * noise
    found = []
    for each, text in ((model, BASE), (other, complete_text(BASE, TARGET))):
        denoised = small.sample(
            each, texts.encode(clip, text), sampler="euler", cfg=1.0, sigmas=torch.tensor([sigma, 0.0]), steps=1,
            noise=noise, latent=latent,
        )  # fmt: skip
        found.append((x - model.model.process_latent_in(denoised)) / sigma)
    expected = control_map.difference(found[1], found[0], 3, 0.02)
    torch.testing.assert_close(mask[:, 4::8, 4::8], expected, rtol=0.05, atol=0.05)  # middles of the cells


def test_outputs_have_the_pictures_size_and_tell_the_parts(sd15):
    image = torch.rand(1, 50, 70, 3, generator=torch.Generator().manual_seed(0))
    mask, overlay, parts = run(sd15, tuned_model=tuned(sd15), image=image, batch=2)
    assert mask.shape == (2, 128, 192) and 0 <= float(mask.min()) and float(mask.max()) <= 1
    assert overlay.shape == (2, 128, 192, 3) and parts.shape == (2, 128 + 36, 192 * (2 + len(phrases_of(BASE))), 3)
    assert float(mask.std()) > 0.01 and not torch.equal(mask[0], mask[1])


def test_the_model_that_is_its_own_tuned_model_gives_nothing_for_equal_texts(sd15, monkeypatch):
    """Where both paths read and are the same, the map is 0, whichever runs first."""
    from omniportrait.sampling import dual_look

    monkeypatch.setattr(dual_look, "complete_text", lambda base, target: base)
    mask, _, _ = run(sd15)
    assert float(mask.abs().max()) == 0


def test_nothing_is_left_on_the_models(sd15):
    other = tuned(sd15)
    text = small.conditioning(sd15, 1)
    before = [small.sample(each, text) for each in (sd15, other)]
    options = str(sd15.model_options), str(other.model_options)
    state = torch.random.get_rng_state()
    first = run(sd15, tuned_model=other)[0]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (str(sd15.model_options), str(other.model_options)) == options
    assert torch.equal(run(sd15, tuned_model=other)[0], first)
    for each, was in zip((sd15, other), before, strict=True):
        assert torch.equal(small.sample(each, text), was)


def test_phrases_can_be_named_and_take_away_what_is_theirs(sd15):
    other = tuned(sd15)
    bare, own, all_ = (
        run(sd15, tuned_model=other, **changes)[0]
        for changes in ({"subtract": 0.0}, {"phrases": "red coat\n"}, {"distance": "constant"})
    )
    assert (own <= bare + 1e-6).all() and (own < bare - 1e-3).any() and (all_ < bare - 1e-3).any()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target_text": " "}, "target text holds no word"),
        ({"base_text": "far " * 80}, "too long together"),
        ({"phrases": "blue coat"}, "does not hold the phrase blue coat"),
        ({"blur": 4}, "blur is 4"),
    ],
)
def test_what_cannot_be_looked_at_is_one_sentence(sd15, changes, said):
    with pytest.raises(ValueError, match=said):
        run(sd15, **changes)


def test_models_of_two_families_are_refused(sd15, sdxl):
    with pytest.raises(ValueError, match="tuned model is of another family"):
        run(sd15, tuned_model=sdxl)


def test_a_tuned_model_without_a_lora_is_told(sd15, caplog):
    with caplog.at_level(logging.WARNING):
        run(sd15, tuned_model=sd15.clone())
    assert "the tuned model has no LoRA" in caplog.text


def test_columns_keep_names_and_places_together():
    found = columns_of(texts.clip("sd15"), BASE, TARGET, ["a dog", "red coat", "park"])
    assert found.names == ("red coat", "park") and len(found.phrases) == 2
