"""What ComfyUI's page needs to know of a node to draw it: sockets, widgets and outputs, as a server tells of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
SEEDS = ("seed", "noise_seed")
OTHER_PACKS = Path(__file__).parent / "other_packs.yaml"


@dataclass(frozen=True)
class Slot:
    """One input. value: of its widget, where it has one and nothing else is said. upload: a button chooses a file."""

    name: str
    kind: str
    optional: bool
    widget: bool
    value: object = None
    upload: bool = False
    tall: bool = False
    """Several lines of text."""
    folded: bool = False
    """Shown on demand only, by newer pages."""

    @property
    def has_control(self) -> bool:
        """Whether the page adds a widget for what becomes of the value after a run."""
        return self.widget and self.name in SEEDS


@dataclass(frozen=True)
class Shape:
    """inputs: in the node's own order. outputs: name and type of each."""

    inputs: tuple[Slot, ...]
    outputs: tuple[tuple[str, str], ...]

    @property
    def by_name(self) -> dict[str, Slot]:
        return {slot.name: slot for slot in self.inputs}

    @property
    def sockets(self) -> list[Slot]:
        return [slot for slot in self.inputs if not slot.widget]

    @property
    def widgets(self) -> list[Slot]:
        return [slot for slot in self.inputs if slot.widget]

    def output(self, name: str) -> tuple[int, str]:
        """Place and type of an output. Raises: ValueError where the node has none of this name."""
        for place, (each, kind) in enumerate(self.outputs):
            if each == name:
                return place, kind
        raise ValueError(f"there is no output {name!r}, only {', '.join(each for each, _ in self.outputs)}")


@cache
def other_packs() -> dict[str, dict]:
    """Nodes of other packs that our workflows use: their inputs as INPUT_TYPES has them, and their outputs."""
    return yaml.safe_load(OTHER_PACKS.read_text(encoding="utf-8"))


def shapes(object_info: dict[str, dict]) -> dict[str, Shape]:
    """Of every node that a server tells of in its /object_info, and of OTHER_PACKS, by type."""
    told = {
        name: _shape(info["input"], zip(info["output_name"], info["output"], strict=True))
        for name, info in object_info.items()
    }
    return told | {name: _shape(node, node["outputs"].items()) for name, node in other_packs().items()}


def _shape(inputs: dict, outputs: Iterable[tuple[str, str]]) -> Shape:
    slots = (
        _slot(name, spec, group == "optional")
        for group in ("required", "optional")
        for name, spec in inputs.get(group, {}).items()
    )
    return Shape(tuple(slots), tuple((name, kind if isinstance(kind, str) else "COMBO") for name, kind in outputs))


def _slot(name: str, spec: tuple, optional: bool) -> Slot:
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    offered = kind if isinstance(kind, list) else options.get("options") or []
    kind = "COMBO" if isinstance(kind, list) else kind
    if kind not in WIDGETS or options.get("forceInput"):
        return Slot(name, kind, optional, False)
    empty = {"STRING": "", "BOOLEAN": False, "INT": 0, "FLOAT": 0.0}.get(kind, offered[0] if offered else "")
    value = options.get("default", empty)
    flags = (bool(options.get(flag)) for flag in ("image_upload", "multiline", "advanced"))
    return Slot(name, kind, optional, True, value, *flags)
