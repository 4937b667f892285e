"""The texts of every node for ComfyUI's page, in each language that it is offered in.

English comes from nodes/inputs.py and the node files. Chinese and Japanese come from translations/<language>.json,
which holds a translation for each English text, so a text that changes asks for a new one instead of keeping an old
one.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

from ...nodes.inputs import INPUTS
from ...nodes.outputs import OUTPUTS
from ...nodes.parameter import Parameter

TRANSLATIONS = Path(__file__).parent / "translations"
LANGUAGES = ("en", "zh", "ja")
PAPER = "Paper: {}."


class Untranslated(ValueError):
    """Texts without a translation; the message is for whoever has added or changed them."""


def locale_path(root: Path, language: str) -> Path:
    return root / "locales" / language / "nodeDefs.json"


def locale(root: Path, language: str) -> str:
    """What a language's file should hold. Raises: Untranslated."""
    return json.dumps(texts(root, language), indent=2, ensure_ascii=False) + "\n"


def texts(root: Path, language: str) -> dict[str, dict]:
    """ComfyUI's nodeDefs in one language. Raises: Untranslated."""
    table = {} if language == "en" else json.loads((TRANSLATIONS / f"{language}.json").read_text(encoding="utf-8"))
    wanted: dict[str, None] = {}

    def say(text: str) -> str:
        wanted[text] = None
        return text if language == "en" else table.get(text, "")

    told = {node_id: _node(node_id, title, about, say) for node_id, (title, about) in titles(root).items()}
    missing = [text for text in wanted if language != "en" and not table.get(text)]
    if missing:
        raise Untranslated(
            f"lab/make/translations/{language}.json lacks the translation of {len(missing)} texts; add each of these "
            "as a key with its translation, then run `python run.py make help-pages`:\n"
            + "\n".join(json.dumps(text, ensure_ascii=False) for text in missing)
        )
    return told


def unused(root: Path, language: str) -> list[str]:
    """Translations of texts that no node has any more; English has none."""
    if language == "en":
        return []
    table = json.loads((TRANSLATIONS / f"{language}.json").read_text(encoding="utf-8"))
    wanted: set[str] = set()
    for node_id, (title, about) in titles(root).items():
        _node(node_id, title, about, lambda text: wanted.add(text) or text)
    return [text for text in table if text not in wanted]


def titles(root: Path) -> dict[str, tuple[str, str]]:
    """Display name and description by node id, as the node files give them to schema_of; read, not imported, since
    they need ComfyUI."""
    calls = (
        call
        for path in sorted((root / "nodes").glob("*.py"))
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "schema_of"
    )
    found = {ast.literal_eval(call.args[0]): tuple(map(ast.literal_eval, call.args[1:3])) for call in calls}
    return {node_id: found[node_id] for node_id in INPUTS}


def _node(node_id: str, title: str, about: str, say: Callable[[str], str]) -> dict:
    return {
        "display_name": say(title),
        "description": say(about),
        "inputs": {
            row.name: {"name": say(row.label or row.name), "tooltip": _tooltip(row, say)} for row in INPUTS[node_id]
        },
        "outputs": {
            str(place): {"name": say(row.name), "tooltip": say(row.meaning)}
            for place, row in enumerate(OUTPUTS[node_id])
        },
    }


def _tooltip(row: Parameter, say: Callable[[str], str]) -> str:
    """As Parameter.tooltip, in the language of `say`."""
    if not row.equation:
        return say(row.meaning)
    return f"{say(row.meaning)} {say(PAPER).format(say(row.equation))}"
