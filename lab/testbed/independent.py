"""Features of a UNet the straightforward way, to compare with: a deep copy outside of inference mode, autograd, and
ComfyUI's own patch between two blocks."""

from __future__ import annotations

import copy

import comfy.sampler_helpers
import comfy.samplers
import torch

from . import small


def arguments_of(model, x) -> dict:
    """What ComfyUI itself would pass to apply_model for one conditioning."""
    base = model.model
    conds = comfy.sampler_helpers.convert_cond(small.conditioning(model, 1))
    conds = comfy.samplers.encode_model_conds(base.extra_conds, conds, x, x.device, "positive")
    return {name: c.process_cond(batch_size=len(x), area=None).cond for name, c in conds[0]["model_conds"].items()}


def features(model, x: torch.Tensor, sigma: float, arguments: dict, blocks: tuple[int, ...]) -> list[torch.Tensor]:
    """Outputs of the output blocks for noisy x [B, C, H, W], with a way back to x. Call outside of inference mode."""
    base = copy.copy(model.model)
    base._modules = dict(base._modules)
    unet = base._modules["diffusion_model"] = copy.deepcopy(model.model.diffusion_model)
    for module in unet.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                module._parameters[name] = torch.nn.Parameter(p.detach().clone(), requires_grad=False)
    seen = {}

    def keep(h, skip, options):  # runs before a block: h is the output of the block before it
        seen[options["block"][1] - 1] = h
        return h, skip

    arguments = {k: v.clone() if torch.is_tensor(v) else v for k, v in arguments.items()}
    options = {"patches": {"output_block_patch": [keep]}}
    base._apply_model(x, torch.full((len(x),), sigma), transformer_options=options, **arguments)
    return [seen[block] for block in blocks]
