"""Models of the published shapes, and random weights for them."""

from __future__ import annotations

import torch

UNETS = {
    "sd15": dict(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, num_res_blocks=[2] * 4,
        channel_mult=[1, 2, 4, 4], num_heads=8, num_head_channels=-1, transformer_depth=[1] * 6 + [0] * 2,
        transformer_depth_output=[1] * 9 + [0] * 3, transformer_depth_middle=1, context_dim=768,
        use_spatial_transformer=True, use_linear_in_transformer=False, use_temporal_attention=False, legacy=False,
        adm_in_channels=None,
    ),
}  # fmt: skip
UNETS["sdxl"] = UNETS["sd15"] | dict(
    num_res_blocks=[2] * 3, channel_mult=[1, 2, 4], num_heads=-1, num_head_channels=64,
    transformer_depth=[0, 0, 2, 2, 10, 10], transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
    transformer_depth_middle=10, context_dim=2048, use_linear_in_transformer=True, num_classes="sequential",
    adm_in_channels=2816,
)  # fmt: skip
"""The UNets' true shapes in ComfyUI's words. Narrow ones for tests and benchmarks follow from these."""
NARROW = {
    "sd15": UNETS["sd15"] | dict(model_channels=32, num_heads=4),
    "sdxl": UNETS["sdxl"] | dict(
        model_channels=32, num_head_channels=16, transformer_depth=[0, 0, 1, 1, 2, 2],
        transformer_depth_output=[0, 0, 0, 1, 1, 1, 2, 2, 2], transformer_depth_middle=2,
    ),
}  # fmt: skip
"""A tenth of the width, and for SDXL fewer layers; what others must fit (text, vector) is true."""
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


def randomise(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """The module's state with random values that keep the size of what flows through: variance 1 / fan-in for matrices,
    near 1 for the scales of norms, near 0 for biases. ComfyUI's layers come without values."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            state[name] = value
        elif "embedding" in name:
            state[name] = 0.5 * torch.randn(value.shape, generator=generator)
        elif value.ndim > 1:
            state[name] = torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
        else:
            state[name] = 0.02 * torch.randn(value.shape, generator=generator) + float(name.endswith("weight"))
    return state


def unet(config: dict) -> torch.nn.Module:
    """ComfyUI's UNet on the meta device: shapes only."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(**config, device="meta", operations=comfy.ops.disable_weight_init)


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def parts(family: str) -> dict[str, object]:
    """The checkpoint's modules by the prefix of their weights, on the meta device."""
    import comfy.clip_model
    import comfy.ops
    from comfy.ldm.models.autoencoder import AutoencoderKL

    with torch.device("meta"):
        made = {
            "model.diffusion_model.": unet(UNETS[family]),
            "first_stage_model.": AutoencoderKL(ddconfig=VAE, embed_dim=4),
        }
        for prefix, config in TEXTS[family].items():
            operations = comfy.ops.disable_weight_init
            made[prefix] = comfy.clip_model.CLIPTextModel(config, torch.float32, "meta", operations)
    return made
