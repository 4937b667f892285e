"""The demo model as ComfyUI sees it: SD1.5's shape at any width, found by what is in the file.

A demo checkpoint is laid out as an SD1.5 checkpoint (`model.diffusion_model.`, `cond_stage_model.`,
`first_stage_model.`) plus one small tensor, MARK, without which nothing here touches a checkpoint. All widths and
depths are read from the weights; MARK holds what shapes do not tell. The VAE is ours where it carries the autoencoder's
own mark, else whatever ComfyUI takes it for.
"""

from __future__ import annotations

import functools

import comfy.latent_formats
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.taesd.taesd
import torch

from .autoencoder import CHANNELS, PortraitAutoencoder, is_ours

MARK = "omniportrait_demo"
"""int64 [3]: format (FORMAT), heads of the UNet's attention, heads of the text encoder's."""
PREVIEW = "omniportrait_demo_preview"
"""float [5, 3], optional: colours of the quick preview by latent channel, and their bias."""
FORMAT = 1
UNET = dict(
    image_size=32,
    in_channels=4,
    out_channels=4,
    model_channels=64,
    num_res_blocks=[2, 2, 1],
    channel_mult=[1, 2, 4],
    num_heads=4,
    use_spatial_transformer=True,
    transformer_depth=[0, 0, 0, 1, 1],
    transformer_depth_output=[0, 0, 0, 0, 1, 1, 1, 1],
    transformer_depth_middle=1,
    context_dim=128,
    use_linear_in_transformer=False,
    legacy=False,
)
"""The shape that `make base` trains: 32x32 latents without attention, 16x16 and 8x8 with it. Loading reads a file's."""
TEXT = dict(hidden_size=128, projection_dim=128, intermediate_size=512, num_attention_heads=4, num_hidden_layers=2)
CLIP = dict(hidden_act="quick_gelu", max_position_embeddings=77, eos_token_id=49407, vocab_size=49408)
"""What the text encoder has in common with CLIP ViT-L."""


def mark(unet_heads: int, text_heads: int) -> torch.Tensor:
    """The tensor to store under MARK."""
    return torch.tensor([FORMAT, unet_heads, text_heads])


class DemoLatent(comfy.latent_formats.LatentFormat):
    """Four channels at an eighth of the picture's size; the VAE is trained to unit variance, so nothing is scaled."""

    scale_factor = 1.0
    latent_rgb_factors = comfy.latent_formats.SD15().latent_rgb_factors


class DemoModel(comfy.supported_models.SD15):
    """SD1.5 with widths, depths and text encoder as the checkpoint has them."""

    unet_config = {"use_temporal_attention": False}
    required_keys = {MARK: None}
    latent_format = DemoLatent

    @classmethod
    def matches(cls, unet_config: dict, state_dict: dict | None = None, *_: object, **__: object) -> bool:
        """Whether this is a demo checkpoint: by MARK alone, so that no other checkpoint is ever claimed."""
        found = None if state_dict is None else state_dict.get(MARK)
        return found is not None and found.numel() == 3 and int(found[0]) == FORMAT

    def get_model(self, state_dict: dict, prefix: str = "", device: torch.device | None = None):
        self.unet_config["num_heads"] = int(state_dict[MARK][1])
        if PREVIEW in state_dict:
            *factors, bias = state_dict[PREVIEW].float().tolist()
            self.latent_format.latent_rgb_factors, self.latent_format.latent_rgb_factors_bias = factors, bias
        return super().get_model(state_dict, prefix, device)

    def clip_target(self, state_dict: dict | None = None) -> comfy.supported_models_base.ClipTarget:
        """CLIP's own tokenizer and text model in the size of `state_dict`, which is the whole checkpoint."""
        config = text_config(state_dict or {}, int(state_dict[MARK][2]))

        class TextModel(comfy.sd1_clip.SD1ClipModel):
            def __init__(self, device="cpu", dtype=None, model_options=None):
                options = {**(model_options or {}), "clip_l_model_config": config}
                super().__init__(device=device, dtype=dtype, model_options=options)

        return comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, TextModel)


def text_config(state_dict: dict, heads: int, prefix: str = "cond_stage_model.transformer.text_model.") -> dict:
    """What differs from CLIP ViT-L's configuration, read from the weights' shapes."""
    hidden = state_dict[f"{prefix}embeddings.token_embedding.weight"].shape[1]
    return {
        "hidden_size": hidden,
        "projection_dim": hidden,
        "intermediate_size": state_dict[f"{prefix}encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_attention_heads": heads,
        "num_hidden_layers": sum(key.startswith(prefix) and key.endswith(".mlp.fc1.weight") for key in state_dict),
    }


def with_portrait_autoencoder(init):
    """`comfy.sd.VAE.__init__` that also knows PortraitAutoencoder, by its mark; every other state goes by untouched.

    ComfyUI has no place to add an autoencoder. It first makes itself for TAESD, whose size, range and channels are the
    same, which sets every attribute that its version wants; then the module and its patcher are exchanged.
    """

    @functools.wraps(init)
    def made(self, sd=None, *args, **kwargs):
        if not sd or not is_ours(sd):
            return init(self, sd, *args, **kwargs)
        init(self, comfy.taesd.taesd.TAESD(latent_channels=CHANNELS).state_dict(), *args, **kwargs)
        module = PortraitAutoencoder.shaped_like(sd).eval()
        module.load_state_dict(sd)
        self.first_stage_model = module.to(self.vae_dtype)
        self.patcher = comfy.model_patcher.ModelPatcher(
            module, load_device=self.device, offload_device=self.patcher.offload_device
        )
        self.size = comfy.model_management.module_size(module)  # which newer cores keep

    made.knows_portraits = True
    return made


def register() -> None:
    """Add the demo model to ComfyUI's list, in front (at SD1.5's text width the entry of SD1.5 would answer first), and
    its autoencoder to ComfyUI's VAE."""
    models = comfy.supported_models.models
    if not any(model.__name__ == DemoModel.__name__ for model in models):
        models.insert(0, DemoModel)
    if not hasattr(comfy.sd.VAE.__init__, "knows_portraits"):
        comfy.sd.VAE.__init__ = with_portrait_autoencoder(comfy.sd.VAE.__init__)
