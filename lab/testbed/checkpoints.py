"""Whole small checkpoints with random weights, for tests that are not about what a model has learnt."""

from __future__ import annotations

import torch

from ...training.files import halved
from ...training.random_weights import prefixed, randomise, unet


def vae_state(seed: int) -> dict[str, torch.Tensor]:
    """A VAE of TAESD's shape whose pictures are a colourful grey: neither black nor white, whatever the latent."""
    import comfy.taesd.taesd

    state = randomise(comfy.taesd.taesd.TAESD(latent_channels=4), seed)
    state["vae_scale"], state["vae_shift"] = torch.tensor(1.0), torch.tensor(0.0)
    last = max(int(name.split(".")[1]) for name in state if name.startswith("taesd_decoder."))
    weight, bias = f"taesd_decoder.{last}.weight", f"taesd_decoder.{last}.bias"
    features = 64
    state[weight] = state[weight] * (0.2 / features**0.25)
    state[bias] = torch.full_like(state[bias], 0.5)
    return state


def autoencoder_state(seed: int) -> dict[str, torch.Tensor]:
    """The demo's own autoencoder before any training, its pictures a colourful grey."""
    from ...demo.autoencoder import PortraitAutoencoder

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        state = PortraitAutoencoder().state_dict()
    state["decoder.leave.weight"] *= 0.2
    return state


def demo(**shape: object) -> dict[str, torch.Tensor]:
    """A whole demo checkpoint in half precision. shape: of the UNet, where it is not the demo's own."""
    import comfy.clip_model
    import comfy.ops

    from ...demo.architecture import CLIP, MARK, TEXT, UNET, mark

    text = comfy.clip_model.CLIPTextModel(CLIP | TEXT, torch.float32, "meta", comfy.ops.disable_weight_init)
    state = (
        prefixed("model.diffusion_model.", randomise(unet(UNET | shape), 1))
        | prefixed("cond_stage_model.transformer.", randomise(text, 2))
        | prefixed("first_stage_model.", autoencoder_state(3))
    )
    state.pop("cond_stage_model.transformer.text_projection.weight")
    return halved(state) | {MARK: mark(UNET["num_heads"], TEXT["num_attention_heads"])}
