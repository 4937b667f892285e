"""Test-only custom node folder: ComfyUI learns narrow SD1.5 and SDXL, which its own detection does not know.

Widths that other models must fit stay true (text 768, and 768 + 1280 for SDXL); everything else is narrow and short.
"""

from __future__ import annotations

import sys

CLIP_L = dict(num_hidden_layers=3, num_attention_heads=12, intermediate_size=64)
CLIP_G = dict(num_hidden_layers=3, num_attention_heads=20, intermediate_size=64)
CHANNELS = 32
PHOTOMAKER_LAYERS = 1


def register() -> None:
    """Add the two families to ComfyUI's list and shorten PhotoMaker's image tower."""
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import comfy.supported_models
    from comfy.supported_models_base import ClipTarget

    class ShortClipL(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(device, dtype, {**(model_options or {}), "clip_l_model_config": CLIP_L})

    class ShortSDXLClip(comfy.sdxl_clip.SDXLClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            short = {"clip_l_model_config": CLIP_L, "clip_g_model_config": CLIP_G}
            super().__init__(device, dtype, {**(model_options or {}), **short})

    class NarrowSD15(comfy.supported_models.SD15):
        unet_config = comfy.supported_models.SD15.unet_config | {"model_channels": CHANNELS}
        unet_extra_config = {"num_heads": 4, "num_head_channels": -1}

        def clip_target(self, state_dict=None):
            return ClipTarget(comfy.sd1_clip.SD1Tokenizer, ShortClipL)

    class NarrowSDXL(comfy.supported_models.SDXL):
        unet_config = comfy.supported_models.SDXL.unet_config | {
            "model_channels": CHANNELS,
            "transformer_depth": [0, 0, 1, 1, 2, 2],
        }
        unet_extra_config = {"num_heads": -1, "num_head_channels": 16}

        def clip_target(self, state_dict=None):
            return ClipTarget(comfy.sdxl_clip.SDXLTokenizer, ShortSDXLClip)

    comfy.supported_models.models += [NarrowSD15, NarrowSDXL]
    for module in [*sys.modules.values()]:  # ComfyUI loads its extra nodes under names made of their paths
        if isinstance(getattr(module, "VISION_CONFIG_DICT", None), dict):
            module.VISION_CONFIG_DICT["num_hidden_layers"] = PHOTOMAKER_LAYERS


async def comfy_entrypoint():
    import torch
    from comfy_api.latest import ComfyExtension, io

    class BrokenImage(io.ComfyNode):
        """What a failed decode gives: NaN everywhere."""

        @classmethod
        def define_schema(cls) -> io.Schema:
            return io.Schema(node_id="StandinBrokenImage", category="tests", inputs=[], outputs=[io.Image.Output()])

        @classmethod
        def execute(cls) -> io.NodeOutput:
            return io.NodeOutput(torch.full((1, 256, 256, 3), float("nan")))

    class StandinExtension(ComfyExtension):
        async def get_node_list(self) -> list[type]:
            return [BrokenImage]

    register()
    return StandinExtension()
