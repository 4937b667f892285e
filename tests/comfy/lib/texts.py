"""Real ComfyUI CLIPs of SD1.5 and SDXL, narrow and with random weights, and pivot encoders for them."""

from __future__ import annotations

from functools import cache

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import torch
from comfy.supported_models_base import ClipTarget
from omniportrait.demo.random_weights import randomise
from omniportrait.models.pivot_encoder import PivotConfig, PivotEncoder, TowerConfig

NARROW = dict(num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
MODELS = {
    "sd15": (comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel),
    "sdxl": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
}
WIDTHS = {"sd15": (768,), "sdxl": (768, 1280)}
TOWER = TowerConfig(image_size=28, patch_size=14, width=32, layers=2, head_width=8, mlp_ratio=2.0)


@cache
def clip(family: str) -> comfy.sd.CLIP:
    """Widths are the true ones; made under inference mode, as a loader node makes it."""
    tokenizer, model = MODELS[family]
    with torch.inference_mode():
        options = {"clip_l_model_config": NARROW, "clip_g_model_config": NARROW}
        made = comfy.sd.CLIP(ClipTarget(tokenizer, model), model_options=options)
        made.cond_stage_model.load_state_dict(randomise(made.cond_stage_model, 1))
    return made


def encoder(family: str, trained: bool = True, fusion: str = "linear") -> PivotEncoder:
    """Untrained, or with every weight moved away from its start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = PivotEncoder(PivotConfig(family, WIDTHS[family], TOWER, fusion))
        with torch.no_grad():
            for weight in made.parameters() if trained else ():
                weight.add_(0.02 * torch.randn_like(weight))
    return made
