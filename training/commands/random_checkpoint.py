"""`python run.py train random-checkpoint --family sd15 --out FILE`: a checkpoint of true size with random weights.

It makes noise and nothing else, but it costs what a real one costs: with it `train pivot-encoder … --dry-run` says what
a machine takes, before anything is downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

UNETS = {
    "sd15": dict(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[2] * 4, num_heads=8,
        channel_mult=[1, 2, 4, 4], transformer_depth=[1] * 6 + [0] * 2, transformer_depth_middle=1,
        transformer_depth_output=[1] * 9 + [0] * 3, context_dim=768, use_spatial_transformer=True, legacy=False,
    ),
    "sdxl": dict(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[2] * 3, num_head_channels=64,
        channel_mult=[1, 2, 4], transformer_depth=[0, 0, 2, 2, 10, 10], transformer_depth_middle=10,
        transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10], context_dim=2048, use_spatial_transformer=True,
        legacy=False, use_linear_in_transformer=True, num_classes="sequential", adm_in_channels=2816,
    ),
}  # fmt: skip
VAE = dict(
    double_z=True, z_channels=4, resolution=256, in_channels=3, out_ch=3, ch=128, ch_mult=[1, 2, 4, 4],
    num_res_blocks=2, attn_resolutions=[], dropout=0.0,
)  # fmt: skip
CLIP_L = dict(
    num_hidden_layers=12, hidden_size=768, num_attention_heads=12, intermediate_size=3072, hidden_act="quick_gelu",
    max_position_embeddings=77, projection_dim=768, eos_token_id=49407,
)  # fmt: skip
CLIP_G = CLIP_L | dict(
    num_hidden_layers=32, hidden_size=1280, num_attention_heads=20, intermediate_size=5120, hidden_act="gelu",
    projection_dim=1280,
)  # fmt: skip
TEXTS = {
    "sd15": {"cond_stage_model.transformer.": CLIP_L},
    "sdxl": {"conditioner.embedders.0.transformer.": CLIP_L, "conditioner.embedders.1.model.transformer.": CLIP_G},
}


def parts(family: str) -> dict[str, object]:
    """The checkpoint's modules by the prefix of their weights, on the meta device."""
    import comfy.clip_model
    import comfy.ops
    import torch
    from comfy.ldm.models.autoencoder import AutoencoderKL

    from ...demo.random_weights import unet

    with torch.device("meta"):
        made = {
            "model.diffusion_model.": unet(UNETS[family]),
            "first_stage_model.": AutoencoderKL(ddconfig=VAE, embed_dim=4),
        }
        for prefix, config in TEXTS[family].items():
            operations = comfy.ops.disable_weight_init
            made[prefix] = comfy.clip_model.CLIPTextModel(config, torch.float32, "meta", operations)
    return made


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="run.py train random-checkpoint", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--family", choices=sorted(UNETS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="the file: 2 GB for sd15, 7 GB for sdxl")
    options = parser.parse_args(words)
    from ... import environment

    environment.use_comfyui()
    from ...demo.random_weights import prefixed, randomise, write

    state = {}
    for seed, (prefix, module) in enumerate(parts(options.family).items()):
        weights = randomise(module, seed)
        half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
        state |= prefixed(prefix, half)
    write(state, options.out)
    print(f"{options.out}: {sum(value.numel() for value in state.values()) / 1e6:.0f} million random weights")
