"""Settings of a training run: frozen dataclasses, read from YAML, every key and value checked.

`Run` is what all tasks have in common; a task's own config extends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from .stages import Stage


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
class Run:
    """One run. checkpoint: the base model's file. out: the run's folder. architecture: "demo" registers the embedded
    model with ComfyUI first.

    batch: global; micro_batch: a process's share of one forward. rate_end: final share of the rate, reached by a
    cosine; 1 is constant. ema: decay, 0 is off. keep: how many states stay on disk.
    """

    checkpoint: str = ""
    out: str = ""
    architecture: Literal["comfyui", "demo"] = "comfyui"
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

    faces: ClassVar[bool] = True
    """Whether a sample needs a noun, a face box and a face mask; else a picture and a caption are enough."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("", self.steps, self.rate),)

    @property
    def folder(self) -> Path:
        """The run's."""
        return Path(self.out).expanduser()

    @property
    def cache(self) -> Path:
        """Folder of indices, downloads, latents and text states."""
        return Path(self.data.cache or Path(self.out) / "cache").expanduser()

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
        if self.data.resolution % 64 or self.data.bucket_step % 64:
            raise ValueError("data.resolution and data.bucket_step must be multiples of 64 pixels.")


Settings = TypeVar("Settings")


def read(
    kind: type[Settings], recipes: Path, recipe: str | Path, overrides: Mapping[str, object] | None = None
) -> Settings:
    """The config of a YAML file, or of the recipe of that name in the folder `recipes`.

    overrides: dotted names ("data.workers") to values. ValueError for what is not known or of the wrong kind.
    """
    path = Path(recipe)
    if not path.suffix and (recipes / f"{recipe}.yaml").is_file():
        path = recipes / f"{recipe}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in recipes.glob("*.yaml")))
        raise ValueError(f"There is no config {recipe}: give a YAML file or one of {known}.")
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for name, value in (overrides or {}).items():
        *parents, last = name.split(".")
        place = content
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return _build(kind, content, "")


def write(config: Run, path: Path) -> None:
    """Save as YAML that `read` takes."""
    path.write_text(as_yaml(config), encoding="utf-8")


def as_yaml(config: object) -> str:
    return yaml.safe_dump(_plain(asdict(config)), sort_keys=False)


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
