"""nodes/inputs.py is the one place where a parameter is explained: what is generated from it is up to date, and what
repeats its names or defaults agrees."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from omniportrait import environment
from omniportrait.guidance.omniportrait.settings import Settings
from omniportrait.lab.make import help_pages, locales
from omniportrait.nodes.guidance_inputs import GUIDANCE, LATER, settings_from
from omniportrait.nodes.ic_inputs import METHOD
from omniportrait.nodes.inputs import ATTENTION, INPUTS
from omniportrait.nodes.outputs import OUTPUTS
from omniportrait.nodes.parameter import Parameter

ROOT = environment.ROOT


@pytest.mark.parametrize("node_id", INPUTS)
def test_a_help_page_is_up_to_date(node_id):
    text = (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    assert text == help_pages.with_lists(text, node_id), "run `python run.py make help-pages`"


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_every_text_is_there_in_every_language(language):
    """Of every node; the failure lists what has no translation yet. No character that the page takes for a sign of its
    own (vue-i18n: plural, link, place)."""
    text = locales.locale(ROOT, language)
    path = locales.locale_path(ROOT, language)
    assert path.read_text(encoding="utf-8") == text, "run `python run.py make help-pages`"
    for node_id, told in json.loads(text).items():
        assert set(told["inputs"]) == {row.name for row in INPUTS[node_id]}
        assert set(told["outputs"]) == {str(place) for place in range(len(OUTPUTS[node_id]))}
        said = [told, *told["inputs"].values(), *told["outputs"].values()]
        values = [value for each in said for value in each.values() if isinstance(value, str)]
        assert all(values) and not any(set(value) & set("{}|@") for value in values), node_id
    assert not locales.unused(ROOT, language), "translations that no text asks for any more: delete them"


def test_a_text_without_a_translation_is_named(monkeypatch):
    monkeypatch.setattr(locales, "INPUTS", INPUTS | {"OmniPortraitRBGuidance": (Parameter("new_input", "INT"),)})
    with pytest.raises(locales.Untranslated, match='zh.json lacks the translation of 2 texts.*\n"new_input"\n""'):
        locales.texts(ROOT, "zh")


@pytest.mark.parametrize(("language", "letters"), [("zh", "\u4e00-\u9fff"), ("ja", "\u3040-\u30ff\u4e00-\u9fff")])
def test_a_translation_is_in_its_language(language, letters):
    """But for names of things: file names, symbols and the like are short."""
    table = json.loads((locales.TRANSLATIONS / f"{language}.json").read_text(encoding="utf-8"))
    foreign = [text for text, said in table.items() if not re.search(f"[{letters}]", said) and len(said) > 6]
    assert not foreign
    assert table[locales.PAPER].count("{}") == 1


def test_a_page_tells_every_input_and_output():
    """Read as people read it: one item a parameter, its default among the values."""
    for node_id, rows in INPUTS.items():
        page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
        told = dict(re.findall(r"^\* \*\*(?:[^`]*)`(\w+)`\*\* \*(.*?)\*<br>.{10}", page, flags=re.MULTILINE))
        assert {row.name for row in rows} | {output.name for output in OUTPUTS[node_id]} <= set(told), node_id
        names = {output.name for output in OUTPUTS[node_id]}  # told last, so that they hide an input of the same name
        for row in rows:
            if isinstance(row.default, float | int) and not isinstance(row.default, bool) and row.name not in names:
                assert told[row.name].endswith(f"default {row.default:g}"), (node_id, row.name)


def test_a_page_without_a_marker_is_refused():
    with pytest.raises(ValueError, match="needs one <!-- outputs -->"):
        help_pages.with_lists("<!-- inputs -->\n<!-- /inputs -->", "OmniPortraitRBGuidance")


def test_the_defaults_of_the_nodes_are_the_settings():
    defaults = {row.name: row.default for row in (*GUIDANCE, *LATER)}
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


WITHOUT = {"ic_portrait_demo", "omniportrait_demo", "save_person", "spf_portrait_demo"}
"""Of the small model, or without guidance."""


@pytest.mark.parametrize("name", sorted({path.stem for path in WORKFLOWS} - WITHOUT))
def test_a_workflow_for_large_models_has_the_defaults(name):
    """The demo has values of its own, which suit its small model."""
    prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    guidance = (*GUIDANCE, *LATER)
    methods = {
        "OmniPortraitRBGuidance": guidance,
        "OmniPortraitRBGuidanceKSampler": guidance,
        "OmniPortraitReferenceAttention": ATTENTION,
        "OmniPortraitICPortrait": METHOD,
        "OmniPortraitICPortraitSampler": METHOD,
    }
    found = [node for node in prompt.values() if node["class_type"] in methods]
    for node in found:
        given = {row.name: node["inputs"][row.name] for row in methods[node["class_type"]]}
        assert given == {row.name: row.default for row in methods[node["class_type"]]}
    assert found
