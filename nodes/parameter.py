"""One input and one output of a node, as inputs.py lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Parameter:
    """One input of a node.

    name: never changes, because saved graphs hold it. kind: ComfyUI's type. default, low, high, step: of a widget.
    meaning: the tooltip and the help page's text. options: of a COMBO; a function where only ComfyUI knows them, and
    `choices` then says what they are. equation: symbol and equation of the paper. label: shown instead of the name.
    advanced: folded away. optional: may be left out. more: further arguments of ComfyUI's input.
    """

    name: str
    kind: str
    default: object = None
    low: float | None = None
    high: float | None = None
    step: float | None = None
    meaning: str = ""
    options: tuple[str, ...] | Callable[[], list[str]] = ()
    choices: str = ""
    equation: str = ""
    label: str = ""
    advanced: bool = False
    optional: bool = False
    more: Mapping[str, object] = field(default_factory=dict)

    @property
    def tooltip(self) -> str:
        """The meaning, and where the paper has it."""
        return f"{self.meaning} Paper: {self.equation}." if self.equation else self.meaning


@dataclass(frozen=True)
class Output:
    """One output of a node: its name, ComfyUI's type, and the tooltip that the help page repeats."""

    name: str
    kind: str
    meaning: str
