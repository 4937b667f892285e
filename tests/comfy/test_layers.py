"""Layers that compute in a way of their own: fp8 products, which have no backward, and compiled ones."""

from __future__ import annotations

import logging

import comfy.ops
import pytest
import torch
from omniportrait.backbone.attention import private_options
from omniportrait.backbone.private import private_tree
from omniportrait.lab.testbed import independent, small
from omniportrait.lab.testbed.guiding import footprint

SIGMA = 1.5
FP8 = {"fast fp8": comfy.ops.fp8_ops}
"""What ComfyUI picks on cards that multiply in fp8."""
if hasattr(comfy.ops, "scaled_fp8_ops"):  # newer cores quantise such checkpoints in another way
    FP8["scaled fp8"] = comfy.ops.scaled_fp8_ops(True, False, torch.float8_e4m3fn)
    FP8["scaled fp8, input too"] = comfy.ops.scaled_fp8_ops(True, True, torch.float8_e4m3fn)


def gradient(model, x, checkpointing) -> torch.Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        twin = small.twin(model, checkpointing=checkpointing)
        leaf = x.clone().requires_grad_(True)
        arguments = independent.arguments_of(model, x)
        features, _ = twin.tap(5, leaf, torch.full((1,), SIGMA), arguments, private_options({}))
        return torch.autograd.grad(features.square().sum(), leaf)[0]


def dequantised(model):
    """The same weights in float32, in ordinary layers."""
    plain = small.sd15()
    with torch.inference_mode():
        for name, module in plain.model.diffusion_model.named_modules():
            source = model.model.diffusion_model.get_submodule(name)
            for key, p in module._parameters.items():
                if p is not None:
                    scale = getattr(source, "scale_weight", None) if key == "weight" else None
                    p.data = source._parameters[key].float() * (1.0 if scale is None else scale)
    return plain


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", FP8)
def test_fp8_products(caplog, kind, checkpointing):
    """The gradient is that of the weights they stand for, without ComfyUI trying in vain and logging it."""
    model = small.sd15(dtype=torch.float8_e4m3fn, manual_cast=torch.float32, operations=FP8[kind])
    with torch.inference_mode():
        for module in model.model.diffusion_model.modules():
            if getattr(module, "scale_weight", None) is not None:
                module.scale_weight.fill_(1.5)
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5)) * SIGMA
    before = footprint(model)
    caplog.set_level(logging.INFO)
    found = gradient(model, x, checkpointing)
    expected = gradient(dequantised(model), x, checkpointing)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6 * float(expected.abs().max()))
    assert "fp8" not in caplog.text
    assert footprint(model) == before


def test_a_compiled_layer():
    """torch.nn.Module.compile binds to the module it was called on, whose weights refuse autograd."""
    with torch.inference_mode():
        layer = torch.nn.Linear(3, 2)
    layer.compile(backend="eager")
    with torch.inference_mode(False), torch.enable_grad():
        twin = private_tree(layer, lambda module: None)
        x = torch.ones(1, 3, requires_grad=True)
        (found,) = torch.autograd.grad(twin(x).sum(), x)
        assert torch.equal(found[0], layer.weight.sum(dim=0))
    assert layer._compiled_call_impl is not None
