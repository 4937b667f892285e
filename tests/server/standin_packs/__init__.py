"""Test-only custom node folder: other packs' nodes as our workflows name them, which the page can open and not run."""

from __future__ import annotations

from pathlib import Path

import yaml

TOLD = yaml.safe_load((Path(__file__).resolve().parents[3] / "lab" / "make" / "other_packs.yaml").read_text("utf-8"))


def _spec(kind: str, options: dict | None = None) -> tuple:
    return (options["options"],) if kind == "COMBO" else (kind, options or {})


def _class(name: str, node: dict) -> type:
    inputs = {
        group: {each: _spec(*spec) for each, spec in node.get(group, {}).items()} for group in ("required", "optional")
    }
    return type(
        name,
        (),
        {
            "INPUT_TYPES": classmethod(lambda cls: inputs),
            "RETURN_TYPES": tuple(node["outputs"].values()),
            "RETURN_NAMES": tuple(node["outputs"]),
            "FUNCTION": "run",
            "CATEGORY": "tests",
        },
    )


NODE_CLASS_MAPPINGS = {name: _class(name, node) for name, node in TOLD.items()}
