"""The defaults of RB-Guidance are written down in workflows and help pages too: all say the same."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from omniportrait import environment
from omniportrait.guidance.omniportrait.settings import Settings

NODES = ("OmniPortraitRBGuidance", "OmniPortraitRBGuidanceKSampler")
OWN = {{"block": "feature_block"}.get(name, name): value for name, value in asdict(Settings()).items()}
EVERY = (environment.ROOT / "workflows").glob("*.json")
WORKFLOWS = sorted(path.stem for path in EVERY if path.stem != "omniportrait_demo")
"""The demo has values of its own, which suit its small model."""


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_for_large_models_has_the_defaults(name):
    prompt = json.loads((environment.ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    (inputs,) = (node["inputs"] for node in prompt.values() if node["class_type"] in NODES)
    said = {key: inputs[key] for key in OWN if key in inputs}
    assert said == {key: OWN[key] for key in said} and {"clip", "every", "u"} <= set(said)


@pytest.mark.parametrize("node", NODES)
def test_a_help_page_tells_the_defaults(node):
    rows = (environment.ROOT / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("| `")]
    told = {row[0].split("`")[1]: row[4].strip("`").replace("−", "-") for row in cells if len(row) == 6}
    known = {name: told[name] for name in OWN if name in told}
    assert {"clip", "every", "u"} <= set(known)
    assert {name: meant(text) for name, text in known.items()} == {name: OWN[name] for name in known}


def meant(text: str) -> bool | float | str:
    """What a help page writes for a switch, a number or a choice."""
    if text in ("on", "off"):
        return text == "on"
    try:
        return float(text)
    except ValueError:
        return text
