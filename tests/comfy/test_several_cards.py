"""MultiGPU Work Units of newer cores: one prediction's calls on several cards. Here "cpu" and "cpu:0" are the cards."""

from __future__ import annotations

import pytest
import torch
from omniportrait.lab.testbed import small
from omniportrait.lab.testbed.guiding import assert_effective, assert_guided, guided
from omniportrait.sampling.recorder import Recorder

pytest.importorskip("comfy.multigpu", reason="this core knows no work units")


def on_two_cards(model):
    """The model with a copy of it on the other card, as the core's node makes it from the checkpoint."""
    copy = small.sd15()
    copy.load_device, copy.is_multigpu_base_clone = torch.device("cpu", 0), True
    model = model.clone()
    model.set_additional_models("multigpu", [copy])
    return model


@pytest.mark.parametrize("guided_pass", ["full", "shared"])
@pytest.mark.parametrize("first", [True, False])
def test_a_guided_run(sd15, vae, monkeypatch, first, guided_pass):
    """The same picture as of one card, whichever card the person's rows were on."""
    person, others = small.annotated(sd15), small.conditioning(sd15, 4) + small.conditioning(sd15, 6)
    positive = person + others if first else others + person  # with the negative four, two to a card
    model, cards, original = on_two_cards(sd15), set(), Recorder.record_call

    def record_call(self, text, control, transformer_options):
        ours = original(self, text, control, transformer_options)
        if ours:
            cards.add(transformer_options["multigpu_thread_device"])
        return ours

    plain = small.sample(sd15, positive)
    expected, _ = guided(sd15, vae, positive)
    monkeypatch.setattr(Recorder, "record_call", record_call)
    picture, trace = guided(model, vae, positive, settings={"guided_pass": guided_pass})
    assert_guided(trace)
    assert cards == {torch.device("cpu") if first else torch.device("cpu", 0)}
    assert_effective(picture, plain)
    torch.testing.assert_close(picture, expected, rtol=0, atol=2e-4 * float(expected.abs().max()))
