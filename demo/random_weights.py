"""Models of the right shapes with random weights, for tests that are not about what a model has learnt."""

from __future__ import annotations

import os
from pathlib import Path

import torch


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
    from .autoencoder import PortraitAutoencoder

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        state = PortraitAutoencoder().state_dict()
    state["decoder.leave.weight"] *= 0.2
    return state


def unet(config: dict) -> torch.nn.Module:
    """ComfyUI's UNet on the meta device: shapes only."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(**config, device="meta", operations=comfy.ops.disable_weight_init)


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def checkpoint() -> dict[str, torch.Tensor]:
    """A whole demo checkpoint in half precision."""
    import comfy.clip_model
    import comfy.ops

    from .architecture import CLIP, MARK, TEXT, UNET, mark

    text = comfy.clip_model.CLIPTextModel(CLIP | TEXT, torch.float32, "meta", comfy.ops.disable_weight_init)
    state = (
        prefixed("model.diffusion_model.", randomise(unet(UNET), 1))
        | prefixed("cond_stage_model.transformer.", randomise(text, 2))
        | prefixed("first_stage_model.", autoencoder_state(3))
    )
    state.pop("cond_stage_model.transformer.text_projection.weight")
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    return half | {MARK: mark(UNET["num_heads"], TEXT["num_attention_heads"])}


def write(state: dict[str, torch.Tensor], path: Path) -> None:
    """Save as safetensors; an interrupted write leaves no half file under the final name."""
    import safetensors.torch

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, part)
    os.replace(part, path)
