"""A new encoder, and the open_clip checkpoint from which its tower starts: weights, and how pictures are normalised."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from ...models.pivot.encoder import FAMILIES, PivotConfig, PivotEncoder, TowerConfig
from .config import Config

CONFIG_FILE = "open_clip_config.json"


def make_encoder(config: Config, text_width: int) -> PivotEncoder:
    """A new encoder, the same for the same seed, with the pretrained tower if the config names one."""
    dims = FAMILIES[config.family] or (text_width,)
    if sum(dims) != text_width:
        raise ValueError(
            f"The config is for {config.family}, whose text is {sum(dims)} wide, but this checkpoint's is "
            f"{text_width}: choose the config of its family."
        )
    path = Path(config.pretrained).expanduser() if config.pretrained else None
    if path is None and config.trainable_layers == 0:
        raise ValueError(
            "The image tower's weights begin at random and would stay so, since trainable_layers is 0: give weights by "
            "--set pretrained=FILE (`train tower` makes some), or let it learn by --set trainable_layers=null."
        )
    weights = read_tower(path) if path else None
    tower = as_trained(config.tower, path, config.pretrained_tag) if path else config.tower
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = PivotEncoder(PivotConfig(config.family, dims, tower, config.fusion))
    if weights is not None:
        encoder.load_pretrained_tower(weights)
    encoder.train_layers(config.trainable_layers)
    return encoder


def read_tower(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of an open_clip checkpoint. ValueError, one sentence, for a file that is none."""
    if not path.is_file():
        raise ValueError(f"There is no file {path}: pretrained must be an open_clip checkpoint of the image tower.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors have each their own
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}): download open_clip's file again."
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return {name.removeprefix("module."): value for name, value in state.items() if isinstance(value, torch.Tensor)}


def as_trained(tower: TowerConfig, path: Path, tag: str | None) -> TowerConfig:
    """The tower with the mean, the deviation and the activation that the weights of `path` were trained with.

    open_clip_config.json beside the file tells them, else open_clip's own table under `tag` (MODEL/TAG); without
    either, the tower stays as it is. ValueError for a file or a tag that says nothing of use.
    """
    beside = path.with_name(CONFIG_FILE)
    try:
        if beside.is_file():
            told = json.loads(beside.read_text(encoding="utf-8"))
            known = told["preprocess_cfg"] | {"quick_gelu": told.get("model_cfg", {}).get("quick_gelu", False)}
        elif tag:
            known = _tagged(tag)
        else:
            return tower
        mean, std = (tuple(map(float, known[name])) for name in ("mean", "std"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        source = beside if beside.is_file() else f"open_clip's table under {tag}"
        raise ValueError(
            f"{source} does not say how pictures are normalised for {path.name}: mend pretrained_tag, or set it to "
            "null and tower.mean and tower.std by hand."
        ) from error
    return replace(tower, mean=mean, std=std, quick_gelu=bool(known.get("quick_gelu", False)))


def _tagged(tag: str) -> dict:
    from open_clip import get_pretrained_cfg

    model, _, name = tag.partition("/")
    known = get_pretrained_cfg(model, name)
    if not known:
        raise KeyError(tag)
    return known
