"""A training run's settings: frozen dataclasses, read from YAML, every key and value checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from ...models.pivot.encoder import TowerConfig

RECIPES = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class Data:
    """shards: paths, globs, `train-{000..009}.tar` patterns or URLs. resolution: side of a square bucket, pixels.

    bucket_step: sides of the aspect buckets are multiples of it; 0 makes every picture square.
    min_side: smaller pictures are skipped. face_labels: values of `<key>.png` that are face, where there is no
    `<key>.mask.png`. reference: "own" takes the face of the picture itself, as the paper does; "identity" that of
    another picture with the same `identity` in its JSON, where there is one.
    cache: folder for indices, downloads, latents and text states (default: `cache` in the run's folder).
    cached: whether latents and text states are computed once and kept there.
    """

    shards: tuple[str, ...] = ()
    resolution: int = 512
    bucket_step: int = 64
    max_aspect: float = 2.0
    min_side: int = 0
    face_labels: tuple[int, ...] = ()
    reference: Literal["own", "identity"] = "own"
    workers: int = 4
    cache: str | None = None
    cached: bool = False


@dataclass(frozen=True)
class Augmentation:
    """Probabilities of each change to the reference face (FastComposer's), and their sizes.

    box: the face box moves and grows by up to this share of its side. zoom: up to this factor.
    rotate: degrees. colour: share by which brightness, contrast and saturation change. background_chance: that all
    outside the face's mask becomes noise. FastComposer does so always, also at inference; here the encoder has to know
    faces as they come, so it is a chance.
    """

    box: float = 0.1
    zoom: float = 2.0
    zoom_chance: float = 0.5
    rotate: float = 30.0
    rotate_chance: float = 0.75
    flip_chance: float = 0.5
    elastic_chance: float = 0.5
    colour: float = 0.5
    colour_chance: float = 0.5
    blur_chance: float = 0.5
    grey_chance: float = 0.1
    background_chance: float = 0.5


@dataclass(frozen=True)
class Objective:
    """Eq. 5. eta: weight of the localisation loss. maps: how the attention map is normalised. drop_both, drop_id:
    chances that text and ID, or the ID alone, are left out. face_only: chance that the denoising loss of a sample
    counts inside the face mask alone (FastComposer's masked loss; 0 is the paper). picture_error: 0 is the paper's
    error of the noise; else the error of the predicted picture, which is sigma^2 as large, at most so many times as
    large. An embedding says who it is where noise hides it, and there the error of the noise is next to nothing.
    timesteps: how t is drawn. "uniform" is the paper; "noisy" with a chance that grows in proportion to t."""

    eta: float = 2e-3
    maps: Literal["max", "none", "ratio"] = "max"
    drop_both: float = 0.1
    drop_id: float = 0.1
    face_only: float = 0.0
    picture_error: float = 0.0
    timesteps: Literal["uniform", "noisy"] = "uniform"


@dataclass(frozen=True)
class Config:
    """One run. checkpoint: the base model's file. out: the run's folder. architecture: "demo" registers the embedded
    model with ComfyUI first.

    family: sd15, sdxl or generic. pretrained: an open_clip checkpoint of the tower, or None. pretrained_tag: which one
    of open_clip's it is, as MODEL/TAG, which decides how pictures are normalised for it, where no open_clip_config.json
    lies beside it. trainable_layers: None is all. batch: global; micro_batch: a process's share of one forward.
    rate_end: final share of the rate, reached by a cosine; 1 is constant. ema: decay, 0 is off. keep: how many states
    stay on disk.
    """

    checkpoint: str = ""
    out: str = ""
    architecture: Literal["comfyui", "demo"] = "comfyui"
    family: Literal["sd15", "sdxl", "generic"] = "sd15"
    tower: TowerConfig = field(default_factory=TowerConfig)
    pretrained: str | None = None
    pretrained_tag: str | None = None
    fusion: Literal["linear", "mlp"] = "linear"
    trainable_layers: int | None = None
    steps: int = 80_000
    batch: int = 64
    micro_batch: int = 4
    rate: float = 2e-5
    warmup: int = 500
    rate_end: float = 1.0
    weight_decay: float = 1e-2
    clip: float = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    checkpointing: bool = True
    ema: float = 0.0
    seed: int = 0
    save_every: int = 1000
    keep: int = 3
    report_every: int = 1000
    report_samples: int = 4
    report_steps: int = 25
    log_every: int = 10
    data: Data = field(default_factory=Data)
    augmentation: Augmentation = field(default_factory=Augmentation)
    objective: Objective = field(default_factory=Objective)

    def check(self) -> None:
        """ValueError, one sentence, for what would only fail later."""
        for name in ("checkpoint", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set: give --{name}, or write it into the config.")
        if not self.data.shards:
            raise ValueError("data.shards is empty: give --data with the folder, the files or the URLs of the shards.")
        for name in ("steps", "batch", "micro_batch", "keep", "save_every", "report_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        for name in ("mean", "std"):
            values = getattr(self.tower, name)
            if len(values) != 3 or not all(0 <= value <= 1 for value in values) or (name == "std" and not all(values)):
                raise ValueError(f"tower.{name} is {list(values)}, but must be three numbers from 0 to 1.")
        if self.data.resolution % 64 or self.data.bucket_step % 64:
            raise ValueError("data.resolution and data.bucket_step must be multiples of 64 pixels.")


def read(recipe: str | Path, overrides: Mapping[str, object] | None = None) -> Config:
    """The config of a YAML file, or of the recipe of that name ("sd15", "sdxl", "demo").

    overrides: dotted names ("data.workers") to values. ValueError for what is not known or of the wrong kind.
    """
    path = Path(recipe)
    if not path.suffix and (RECIPES / f"{recipe}.yaml").is_file():
        path = RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in RECIPES.glob("*.yaml")))
        raise ValueError(f"There is no config {recipe}: give a YAML file or one of {known}.")
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for name, value in (overrides or {}).items():
        *parents, last = name.split(".")
        place = content
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return _build(Config, content, "")


def write(config: Config, path: Path) -> None:
    """Save as YAML that `read` takes."""
    path.write_text(yaml.safe_dump(_plain(asdict(config)), sort_keys=False), encoding="utf-8")


def parse_override(text: str) -> tuple[str, object]:
    """`data.workers=2` of the command line: name and value, read as YAML."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text} is no setting: write NAME=VALUE, such as data.workers=2.")
    return name.strip(), yaml.safe_load(value)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _build(cls: type, content: object, where: str) -> Any:
    if not isinstance(content, Mapping):
        raise ValueError(f"{where or 'The config'} must be a block of names and values, not {content!r}.")
    hints = get_type_hints(cls)
    known = {each.name: each for each in fields(cls)}
    if unknown := sorted(set(content) - set(known)):
        raise ValueError(f"{where}{unknown[0]} is no setting; there are {', '.join(known)}.")
    missing = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if absent := [name for name in missing if name not in content]:
        raise ValueError(f"{where}{absent[0]} is missing.")
    return cls(**{name: _value(hints[name], value, where + name) for name, value in content.items()})


def _value(kind: Any, value: object, name: str) -> object:
    """`value` as `kind`. YAML reads 2e-5 as text, so numbers are parsed here."""
    if is_dataclass(kind):
        return _build(kind, value, f"{name}.")
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        options = get_args(kind)
        if value is None and type(None) in options:
            return None
        return _value(next(each for each in options if each is not type(None)), value, name)
    if origin is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(map(str, get_args(kind)))}.")
        return value
    if origin is tuple:
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_value(get_args(kind)[0], each, name) for each in values)
    if kind is bool or isinstance(value, bool):
        if kind is not bool or not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}, but must be {'true or false' if kind is bool else 'no yes or no'}.")
        return value
    try:
        number = kind(value) if kind is not int else int(str(value))
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}, but must be {_NAMES[kind]}.") from None
    return number


_NAMES = {int: "a whole number", float: "a number", str: "text"}
