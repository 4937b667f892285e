"""nodes/inputs.py is the one place where a parameter is explained: what is generated from it is up to date, and what
repeats its names or defaults agrees."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from omniportrait import environment
from omniportrait.guidance.omniportrait.settings import Settings
from omniportrait.lab.make import help_pages
from omniportrait.nodes.guidance_inputs import COST, GUIDANCE, settings_from
from omniportrait.nodes.inputs import ATTENTION, INPUTS
from omniportrait.nodes.outputs import OUTPUTS

ROOT = environment.ROOT


@pytest.mark.parametrize("path", help_pages.files(ROOT), ids=lambda path: path.name)
def test_a_generated_file_is_up_to_date(path):
    assert path.read_text(encoding="utf-8") == help_pages.files(ROOT)[path], "run `python run.py make help-pages`"


def test_a_page_tells_every_input_and_output():
    """Read as people read it: one row a parameter, its default among the values."""
    for node_id, rows in INPUTS.items():
        page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
        cells = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
        table = {row[0].split("`")[1]: row for row in cells if "`" in row[0]}
        assert {row.name for row in rows} | {output.name for output in OUTPUTS[node_id]} <= set(table), node_id
        for row in rows:
            if isinstance(row.default, float | int) and not isinstance(row.default, bool):
                assert table[row.name][1].endswith(f"default {row.default:g}* |"), (node_id, row.name)


def test_a_page_without_a_marker_is_refused():
    with pytest.raises(ValueError, match="needs one <!-- outputs -->"):
        help_pages.with_tables("<!-- inputs -->\n<!-- /inputs -->", "OmniPortraitRBGuidance")


def test_the_defaults_of_the_nodes_are_the_settings():
    defaults = {row.name: row.default for row in (*GUIDANCE, *COST)}
    assert settings_from(**defaults) == Settings()
    assert settings_from(**defaults | {"feature_block": 4, "p": 1.0}) == replace(Settings(), block=4, p=1.0)


WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_the_nodes_as_they_are(path):
    """Our nodes' inputs and outputs by name; widgets in the table's order, in which a graph saves their values."""
    for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
        if node["type"] in INPUTS:
            rows = INPUTS[node["type"]]
            assert {each["name"] for each in node["inputs"]} == {row.name for row in rows}, node["title"]
            widgets = [each["name"] for each in node["inputs"] if "widget" in each]
            assert widgets == [row.name for row in rows if row.name in widgets], node["title"]
            assert [each["name"] for each in node["outputs"]] == [o.name for o in OUTPUTS[node["type"]]], node["title"]


@pytest.mark.parametrize("name", [path.stem for path in WORKFLOWS if path.stem != "omniportrait_demo"])
def test_a_workflow_for_large_models_has_the_defaults(name):
    """The demo has values of its own, which suit its small model."""
    prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    guidance = (*GUIDANCE, *COST)
    methods = {
        "OmniPortraitRBGuidance": guidance,
        "OmniPortraitRBGuidanceKSampler": guidance,
        "OmniPortraitReferenceAttention": ATTENTION,
    }
    found = [node for node in prompt.values() if node["class_type"] in methods]
    for node in found:
        given = {row.name: node["inputs"][row.name] for row in methods[node["class_type"]]}
        assert given == {row.name: row.default for row in methods[node["class_type"]]}
    assert found
