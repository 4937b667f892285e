"""The demo model is found by its own mark, whatever its widths, and no other checkpoint is ever claimed."""

from __future__ import annotations

import comfy.model_detection
import comfy.supported_models
import pytest
import torch
from omniportrait.demo import architecture
from omniportrait.training.random_weights import NARROW, unet

PREFIX = "model.diffusion_model."


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(comfy.supported_models, "models", list(comfy.supported_models.models))
    architecture.register()
    architecture.register()


def state(**changes) -> dict[str, torch.Tensor]:
    """An SD1.5-shaped UNet's keys and shapes, without values."""
    weights = unet(NARROW["sd15"] | changes).state_dict()
    return {PREFIX + name: value for name, value in weights.items()}


def detected(weights: dict) -> type:
    return type(comfy.model_detection.model_config_from_unet(weights, PREFIX))


def test_registered_once(registered):
    assert comfy.supported_models.models.count(architecture.DemoModel) == 1


@pytest.mark.parametrize("width", [64, 128, 768])
def test_marked_checkpoint_is_ours_at_any_width(registered, width):
    marked = state(context_dim=width) | {architecture.MARK: architecture.mark(4, 4)}
    assert detected(marked) is architecture.DemoModel


def test_true_sd15_stays_sd15(registered):
    assert detected(state(model_channels=320)) is comfy.supported_models.SD15


def test_unmarked_or_foreign_mark_is_not_ours(registered):
    assert detected(state()) is not architecture.DemoModel
    assert detected(state() | {architecture.MARK: torch.tensor([99, 4, 4])}) is not architecture.DemoModel
    assert detected(state() | {architecture.MARK: torch.zeros(7)}) is not architecture.DemoModel
