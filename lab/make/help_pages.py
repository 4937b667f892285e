"""Write the help pages' lists and the page's texts from nodes/inputs.py: `python run.py make help-pages`.

A help page is written by hand but for what stands between `<!-- inputs -->` and `<!-- /inputs -->`, and the same for
outputs. The texts of locales/ are written whole (locales.py).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...nodes.inputs import INPUTS
from ...nodes.outputs import OUTPUTS
from ...nodes.parameter import Output, Parameter
from .locales import LANGUAGES, Untranslated, locale, locale_path

ROOT = Path(__file__).parents[2]


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="run.py make help-pages", description=__doc__, allow_abbrev=False)
    parser.parse_args(words)
    try:
        for path, text in files(ROOT):
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
                print(path.relative_to(ROOT))
    except Untranslated as error:
        raise SystemExit(str(error)) from error


def files(root: Path) -> Iterator[tuple[Path, str]]:
    """Every generated file and what it should hold: the help pages, then the page's texts. Raises: Untranslated."""
    for node_id in INPUTS:
        path = root / "web" / "docs" / f"{node_id}.md"
        yield path, with_lists(path.read_text(encoding="utf-8"), node_id)
    for language in LANGUAGES:
        yield locale_path(root, language), locale(root, language)


def with_lists(text: str, node_id: str) -> str:
    """A help page with its two lists in place; no tables, for ComfyUI shows help in a narrow panel. Raises: ValueError
    where a marker is missing."""
    for name, rows in (("inputs", input_lists(INPUTS[node_id])), ("outputs", output_list(OUTPUTS[node_id]))):
        text, count = re.subn(
            f"<!-- {name} -->\n.*?<!-- /{name} -->",
            lambda _, name=name, rows=rows: f"<!-- {name} -->\n{rows}\n<!-- /{name} -->",
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f"The help page of {node_id} needs one <!-- {name} --> and <!-- /{name} --> around it.")
    return text


def input_lists(rows: Iterable[Parameter]) -> str:
    """The inputs as people see them, then what the node folds away."""
    shown, folded = (
        [_item(_title(row), _values(row), row.tooltip) for row in rows if row.advanced == advanced]
        for advanced in (False, True)
    )
    parts = ["\n".join(shown)] if shown else []
    if folded:
        parts += ["### Advanced", "\n".join(folded)]
    return "\n\n".join(parts)


def output_list(rows: Iterable[Output]) -> str:
    return "\n".join(_item(f"`{row.name}`", row.kind, row.meaning) for row in rows)


def _item(name: str, values: str, text: str) -> str:
    return f"* **{name}** *{values}*<br>{text}"


def _title(row: Parameter) -> str:
    return f"{row.label} `{row.name}`" if row.label else f"`{row.name}`"


def _values(row: Parameter) -> str:
    """Type, default and range in a few words."""
    if row.choices:
        return f"{row.choices}; default `{row.default}`" if row.default else row.choices
    if row.kind == "COMBO":
        return ", ".join(f"`{each}`" + " (default)" * (each == row.default) for each in row.options)
    if row.kind == "BOOLEAN":
        return "on (default), off" if row.default else "on, off (default)"
    if row.low is not None:
        return f"{row.kind}, {_number(row.low)} to {_number(row.high)}; default {_number(row.default)}"
    if row.default is not None:
        return f"{row.kind}; default " + (f"`{row.default}`" if row.default != "" else "empty")
    return f"{row.kind}, optional" if row.optional else row.kind


def _number(value: float) -> str:
    """A number as people write it; the limits of seeds as powers of two."""
    if isinstance(value, int) and value > 2**31:
        return f"2^{value.bit_length()} - 1"
    return f"{value:g}" if abs(value) < 1e6 else f"{value}"
