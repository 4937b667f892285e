"""Random stand-ins for the model files and photographs that workflows name, in the true formats and text widths."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import standin_nodes
import torch
from omniportrait.lab.testbed.checkpoints import vae_state
from omniportrait.training.files import halved, write_tensors
from omniportrait.training.random_weights import NARROW, prefixed, randomise, unet
from PIL import Image

PHOTO = 256
"""Longer side of a photograph: what paints into one works at its size."""
CLIP = dict(hidden_act="quick_gelu", max_position_embeddings=77, eos_token_id=49407)


def _text(config: dict, width: int, seed: int) -> dict[str, torch.Tensor]:
    import comfy.clip_model
    import comfy.ops

    sizes = dict(hidden_size=width, projection_dim=width)
    model = comfy.clip_model.CLIPTextModel(CLIP | sizes | config, None, "meta", comfy.ops.disable_weight_init)
    return randomise(model, seed)


def sd15(path: Path) -> None:
    """An SD1.5 checkpoint, narrow."""
    write_tensors(
        path,
        halved(
            prefixed("model.diffusion_model.", randomise(unet(NARROW["sd15"]), 1))
            | prefixed("cond_stage_model.transformer.", _text(standin_nodes.CLIP_L, 768, 2))
            | prefixed("first_stage_model.", vae_state(3))
        ),
    )


def sdxl(path: Path) -> None:
    """An SDXL checkpoint, narrow, with both text encoders."""
    write_tensors(
        path,
        halved(
            prefixed("model.diffusion_model.", randomise(unet(NARROW["sdxl"]), 4))
            | prefixed("conditioner.embedders.0.transformer.", _text(standin_nodes.CLIP_L, 768, 5))
            | prefixed("conditioner.embedders.1.model.transformer.", _text(standin_nodes.CLIP_G, 1280, 6))
            | prefixed("first_stage_model.", vae_state(7))
        ),
    )


def demo(path: Path) -> None:
    """The demo's own checkpoint."""
    from omniportrait.demo import main

    main.link(main.DEMO_CHECKPOINT, path)


def photomaker(path: Path) -> None:
    """PhotoMaker's file with a short image tower."""
    import comfy_extras.nodes_photomaker as nodes_photomaker

    nodes_photomaker.VISION_CONFIG_DICT["num_hidden_layers"] = standin_nodes.PHOTOMAKER_LAYERS
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"id_encoder": halved(randomise(nodes_photomaker.PhotoMakerIDEncoder(), 8))}, path)


def pivot_encoder(path: Path) -> None:
    """The demo's own pivot encoder, or one with a small tower and a fusion that does change the word."""
    from omniportrait.demo import main
    from omniportrait.models.pivot.encoder import PivotConfig, PivotEncoder, TowerConfig
    from omniportrait.models.pivot.file import save

    if path.name == main.DEMO_ENCODER.name:
        return main.link(main.DEMO_ENCODER, path)
    tower = TowerConfig(image_size=56, patch_size=14, width=64, layers=2, head_width=16)
    family, widths = ("sdxl", (768, 1280)) if _is_sdxl(path.name) else ("sd15", (768,))
    generator = torch.Generator().manual_seed(9)
    encoder = PivotEncoder(PivotConfig(family, widths, tower))
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    save(path, encoder, step=0)


def lora(path: Path) -> None:
    """A LoRA of the embedded model's cross-attention."""
    from omniportrait.demo.architecture import UNET

    generator, state = torch.Generator().manual_seed(10), {}
    for name, weight in unet(UNET).named_parameters():
        if "attn2" in name and weight.ndim == 2:
            key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            outputs, inputs = weight.shape
            state[f"{key}.lora_up.weight"] = torch.randn(outputs, 4, generator=generator) * 0.1
            state[f"{key}.lora_down.weight"] = torch.randn(4, inputs, generator=generator) / inputs**0.5
    write_tensors(path, halved(state))


def ic_portrait(path: Path) -> None:
    """IC-Portrait's nets of the narrow SD1.5's shape, or of the embedded model's."""
    import comfy.ops
    from omniportrait.demo.architecture import UNET
    from omniportrait.models.ic.file import ICHeader, save
    from omniportrait.models.ic.nets import ICNets, Shape

    embedded = "omniportrait_demo" in path.name
    shape = Shape.of(UNET if embedded else NARROW["sd15"])
    nets = ICNets(shape, comfy.ops.disable_weight_init, device="meta")
    nets.load_state_dict(randomise(nets, 10), assign=True)
    crop, side = ((1.25, 1.45), 256) if embedded else ((1.7, 2.3), 128)
    save(path, nets, ICHeader(shape, len(shape.widths), crop=crop, resolution=side))


def photograph(path: Path) -> None:
    """A real photograph of one person; another one, or both side by side, for names that say so."""
    from omniportrait.demo import main

    path.parent.mkdir(parents=True, exist_ok=True)
    if "two_people" in path.stem:
        return main.side_by_side(main.first_photo(), main.second_photo(), path)
    main.save_photo(main.second_photo() if path.stem.endswith("2") else main.first_photo(), path)
    with Image.open(path) as photo:
        photo.thumbnail((PHOTO, PHOTO))
        photo.save(path)


def identity(path: Path) -> None:
    """Two photographs of one person."""
    from dataclasses import replace

    from omniportrait.lab.testbed import small
    from omniportrait.models.faces.identity_file import save

    save(path, replace(small.face(0), more=(small.face(1),)))


def _is_sdxl(name: str) -> bool:
    return "xl" in name.lower()


def checkpoint(path: Path) -> None:
    """The stand-in that fits a checkpoint's name."""
    if "omniportrait_demo" in path.name:
        return demo(path)
    return sdxl(path) if _is_sdxl(path.name) else sd15(path)


MAKERS: dict[str, tuple[str, str, Callable[[Path], None]]] = {
    "CheckpointLoaderSimple": ("ckpt_name", "models/checkpoints", checkpoint),
    "OmniPortraitLoadIdentity": ("identity_name", "models/omniportrait_identities", identity),
    "OmniPortraitPivotEncoderLoader": ("pivot_encoder_name", "models/pivot_encoders", pivot_encoder),
    "OmniPortraitICPortraitLoader": ("ic_portrait_name", "models/ic_portrait", ic_portrait),
    "PhotoMakerLoader": ("photomaker_model_name", "models/photomaker", photomaker),
    "LoraLoader": ("lora_name", "models/loras", lora),
    "LoadImage": ("image", "input", photograph),
}
"""Class of a loader node: its input that names a file, the folder of that file, and what writes a stand-in."""


def provide(base: Path, prompt: dict) -> None:
    """Write every file that a prompt in API format names and that is not there yet. KeyError for an unknown loader."""
    for node in prompt.values():
        kind = node["class_type"]
        if kind in MAKERS:
            name, folder, maker = MAKERS[kind]
            _make(maker, base / folder / node["inputs"][name])
        elif "Load" in kind:
            raise KeyError(f"tests/server/standin_files.py has no stand-in for the files of {kind}")


@cache
def _make(maker: Callable[[Path], None], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    maker(path)
