"""The file that comes out: a LoRA that ComfyUI's Load LoRA reads without a word in its log, and other programs too."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ..base import Base
from .adapters import Adapters
from .config import Config

VERSION = "1"
OURS = "omniportrait."
"""What our own metadata begin with."""
FAMILIES = {
    "SD15": ("stable-diffusion-v1/lora", "sd_v1"),
    "SDXL": ("stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0"),
    "DemoModel": ("omniportrait-demo/lora", "omniportrait_demo"),
}
"""Class of ComfyUI's model config: ModelSpec's architecture, kohya's base model version."""

Tensors = dict[str, torch.Tensor]


def keys_of(model: object, names: Sequence[str]) -> dict[str, str]:
    """The file's key for each layer of the UNet, by ComfyUI's own map of the loaded model.

    SD1.5 has diffusers' names, as kohya writes them; SDXL and the others the checkpoint's own. ValueError where the
    map leads anywhere but to the very layer: ComfyUI's diffusers names are wrong for UNets of other depths, and such a
    file would patch other layers without a word.
    """
    import comfy.lora
    import comfy.utils

    known = comfy.lora.model_lora_keys_unet(model.model, {})
    config = model.model.model_config
    renamed = {}
    if type(config).__name__ == "SD15":
        renamed = {unet: name for name, unet in comfy.utils.unet_to_diffusers(config.unet_config).items()}
    found = {}
    for name in names:
        weight = f"{name}.weight"
        key = "lora_unet_" + renamed.get(weight, weight).removesuffix(".weight").replace(".", "_")
        if known.get(key) != f"diffusion_model.{weight}":
            raise ValueError(
                f"ComfyUI would load {key} into {known.get(key)} instead of {name}, so no LoRA of this checkpoint can "
                "be written; report it with the checkpoint's name."
            )
        found[name] = key
    return found


def content(adapters: Adapters, keys: Mapping[str, str]) -> Tensors:
    """The file's tensors, half precision on the CPU."""
    state = {f"{keys[name]}.{end}": value for name in adapters.names for end, value in adapters.content(name).items()}
    return {key: value.detach().half().cpu().contiguous() for key, value in state.items()}


def check(model: object, state: Tensors, names: Sequence[str]) -> None:
    """ValueError unless ComfyUI's loader finds a place for every key, and each layer's own."""
    import comfy.lora

    known = comfy.lora.model_lora_keys_unet(model.model, {})
    loaded = comfy.lora.load_lora(dict(state), known, log_missing=False)
    if set(loaded) != {f"diffusion_model.{name}.weight" for name in names}:
        raise ValueError("ComfyUI would not load this LoRA into the layers that were trained; report it.")


def patched(model: object, state: Tensors, strength: float = 1.0) -> object:
    """A clone of a MODEL with a LoRA, as Load LoRA makes it."""
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, dict(state), strength, 0.0)[0]


def metadata(
    config: Config, base: Base, state: Tensors, step: int, stage: str, targets: Mapping[str, int]
) -> dict[str, str]:
    """What browsers of LoRAs read (ModelSpec and kohya), and ours; text alone, no paths. stage: the one that runs.
    targets: how many pictures show each, 0 for those that the run started from."""
    kind = type(base.net.model_config).__name__
    architecture, version = FAMILIES.get(kind, (f"{kind.lower()}/lora", kind.lower()))
    phrase, name = ", ".join(targets), Path(config.out).name
    side = config.data.resolution
    ranks = {len(value) for key, value in state.items() if key.endswith(".lora_down.weight")}
    found = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": f"{name}: {phrase}",
        "modelspec.description": f'SPF-Portrait: adds "{phrase}" and leaves the rest of the model as it was',
        "modelspec.date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": "v" if "V_PREDICTION" in str(base.net.model_type) else "epsilon",
        "modelspec.trigger_phrase": phrase,
        "modelspec.hash_sha256": f"0x{_hash(state)}",
        "ss_network_module": "networks.lora",
        "ss_network_dim": max(ranks, default=config.rank),
        "ss_network_alpha": config.alpha,
        "ss_base_model_version": version,
        "ss_sd_model_name": Path(config.checkpoint).name,
        "ss_output_name": name,
        "ss_steps": step,
        "ss_num_train_images": sum(targets.values()),
        "ss_learning_rate": config.rate,
        "ss_unet_lr": config.rate,
        "ss_seed": config.seed,
        "ss_mixed_precision": "bf16" if config.precision == "bf16" else "no",
        "ss_resolution": f"({side}, {side})",
        "ss_tag_frequency": json.dumps({"1_target": dict(targets)}),
        "ss_v2": "False",
        f"{OURS}method": "spf-portrait",
        f"{OURS}version": VERSION,
        f"{OURS}stage": stage,
        f"{OURS}targets": json.dumps(list(targets)),
        f"{OURS}objective": json.dumps(asdict(config.objective)),
        f"{OURS}base": Path(config.checkpoint).name,
    }
    return {key: str(value) for key, value in found.items()}


def _hash(state: Tensors) -> str:
    found = hashlib.sha256()
    for key in sorted(state):
        found.update(state[key].view(torch.uint8).numpy().tobytes() if state[key].ndim else str(state[key]).encode())
    return found.hexdigest()


def save(path: Path, state: Tensors, told: Mapping[str, str]) -> None:
    import safetensors.torch

    from ..files import write_whole

    write_whole(path, safetensors.torch.save(state, dict(told)))


def load(path: Path) -> tuple[Tensors, list[str]]:
    """A LoRA's tensors, and the targets that it was trained for, as far as it says. ValueError for other files."""
    from safetensors import safe_open

    try:
        with safe_open(str(path), "pt") as file:
            told = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors has its own
        raise ValueError(
            f"{path} cannot be read as a LoRA ({type(error).__name__}): give a safetensors file."
        ) from error
    phrase = told.get("modelspec.trigger_phrase")
    return state, json.loads(told.get(f"{OURS}targets", "null")) or ([phrase] if phrase else [])


ENDS = {
    "lora_up.weight": "lora_up.weight", "lora_B.weight": "lora_up.weight", "lora.up.weight": "lora_up.weight",
    "lora_down.weight": "lora_down.weight", "lora_A.weight": "lora_down.weight", "lora.down.weight": "lora_down.weight",
    "alpha": "alpha", "diff": "diff",
}  # fmt: skip
"""What stands behind a layer's name in a plain LoRA, in kohya's and diffusers' ways, and what stands there in ours."""


def renamed(model: object, state: Tensors) -> Tensors:
    """A LoRA under the names that `keys_of` gives: of two names for one layer ComfyUI reads one alone.

    Raises: ValueError for a LoRA that is no plain one, or reaches beyond the UNet.
    """
    import comfy.lora

    known = comfy.lora.model_lora_keys_unet(model.model, {})
    places = []
    for key in state:
        end = next((end for end in ENDS if key.endswith(f".{end}")), "")
        layer = known.get(key.removesuffix(f".{end}")) if end else None
        if layer is None:
            raise ValueError(f"{key} is no plain LoRA of the UNet's layers")
        places.append((layer.removeprefix("diffusion_model.").removesuffix(".weight"), ENDS[end]))
    keys = keys_of(model, [name for name, _ in places])
    return {f"{keys[name]}.{end}": value for (name, end), value in zip(places, state.values(), strict=True)}


def joined(first: Tensors, second: Tensors) -> Tensors:
    """One file that does what both do, one behind the other: ranks side by side, which is exactly the sum.

    ValueError where a layer is in both, but not as LoRA or as a difference in both.
    """
    result = first | second
    for key in {key.split(".")[0] for key in first} & {key.split(".")[0] for key in second}:
        down, up, alpha, diff = (f"{key}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha", "diff"))
        if diff in first and diff in second:
            result[diff] = first[diff] + second[diff]
        elif all(down in each and up in each for each in (first, second)):
            both = [_scaled(each[up], each[down], each.get(alpha)) for each in (first, second)]
            result[up] = torch.cat([one for one, _ in both], 1)
            result[down] = torch.cat([other for _, other in both], 0)
            result[alpha] = torch.tensor(float(len(result[down])), dtype=torch.half)
        else:
            raise ValueError("The two LoRAs are of different kinds and cannot be joined: use two Load LoRA nodes.")
    return result


def _scaled(up: torch.Tensor, down: torch.Tensor, alpha: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The same product with a scale of 1, which joined files have. Without an alpha the scale is 1."""
    scale = float(alpha) / len(down) if alpha is not None else 1.0
    return (up.float() * scale).half(), down.half()
