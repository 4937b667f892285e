"""Real ComfyUI CLIPs of SD1.5 and SDXL, narrow and with random weights, pivot encoders for them, and
Pivot Conditioning run as ComfyUI runs it."""

from __future__ import annotations

from functools import cache

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import torch
from comfy.supported_models_base import ClipTarget

import nodes

from ...models.pivot.encoder import PivotConfig, PivotEncoder, TowerConfig
from ...sampling.record import RECORDS_KEY
from ...training.random_weights import randomise
from . import small

TEXT = "a photo of a (woman:1.2) and an old man in a garden"
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


def condition(clip, text: str = TEXT, subject: str = "woman", face=None, **inputs) -> list:
    from ...nodes.pivot_conditioning import PivotConditioning

    inputs = {"occurrence": 1, "strength": 1.0} | inputs
    face = small.face() if face is None else face
    with torch.inference_mode():
        return PivotConditioning.execute(clip, face, text, subject, **inputs).result[0]


def encode(clip, text: str = TEXT) -> list:
    with torch.inference_mode():
        return nodes.CLIPTextEncode().encode(clip, text)[0]


def changed_rows(one: torch.Tensor, other: torch.Tensor) -> list[int]:
    return (one != other).any(-1).any(0).nonzero().flatten().tolist()


def fingerprint(conditioning: list) -> list:
    """Everything in a conditioning that could be changed in place."""
    return [
        (id(rows), rows.clone(), set(options), options.get(RECORDS_KEY), options["pooled_output"].clone())
        for rows, options in conditioning
    ]


def assert_unchanged(conditioning: list, before: list) -> None:
    for was, now in zip(before, fingerprint(conditioning), strict=True):
        assert was[0] == now[0] and was[2:4] == now[2:4]
        assert torch.equal(was[1], now[1]) and torch.equal(was[4], now[4])
