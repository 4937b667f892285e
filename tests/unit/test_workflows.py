"""The workflows as files, without ComfyUI: both forms say the same, and the page's graph is whole and readable."""

from __future__ import annotations

import itertools
import json

import pytest
from omniportrait import environment

FOLDER = environment.ROOT / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
PAGE_ONLY = ("MarkdownNote", "PrimitiveNode")
TITLE = 30
"""Pixels of a node's title bar, which lies above its position."""


def read(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(params=NAMES)
def workflow(request) -> dict:
    return read(FOLDER / f"{request.param}.json") | {"name": request.param}


def real(workflow: dict) -> list[dict]:
    """The nodes that run."""
    return [node for node in workflow["nodes"] if node["type"] not in PAGE_ONLY]


def inputs_of(node: dict, links: dict[int, list], shared: dict[int, dict]) -> dict:
    """What the page sends for one node: its links, and its widgets' values in order.

    shared: the primitives by id. The page puts their value in the place of the widget's own, which has to agree, or
    the graph would show one number and use another.
    """
    values = iter(node.get("widgets_values", ()))
    inputs = {}
    for entry in node["inputs"]:
        if "widget" in entry:
            value = next(values)
            if entry["type"] != "IMAGEUPLOAD":  # the button of LoadImage
                inputs[entry["name"]] = value
            if entry["name"] in ("seed", "noise_seed"):
                assert next(values) == "fixed"
        if entry["link"] is not None:
            origin, slot = links[entry["link"]][1:3]
            if origin in shared:
                assert shared[origin]["widgets_values"][:2] == [inputs[entry["name"]], "fixed"]
                assert shared[origin]["outputs"][slot]["widget"] == entry["widget"]
            else:
                inputs[entry["name"]] = [str(origin), slot]
    assert not list(values), f"node {node['id']} has more values than widgets"
    return inputs


def test_both_forms_say_the_same(workflow):
    links = {link[0]: link for link in workflow["links"]}
    shared = {node["id"]: node for node in workflow["nodes"] if node["type"] == "PrimitiveNode"}
    page = {
        str(node["id"]): {
            "class_type": node["type"],
            "inputs": inputs_of(node, links, shared),
            "_meta": {"title": node["title"]},
        }
        for node in real(workflow)
    }
    assert page == read(FOLDER / "api" / f"{workflow['name']}.json")


def compared(prompt: dict) -> list[str]:
    """Ids of the decoders of the comparison's portraits, from the left."""
    (place,) = (each["inputs"]["images"][0] for each in prompt.values()
                if "comparison" in each["inputs"].get("filename_prefix", ""))  # fmt: skip
    found: list[str] = []
    while prompt[place]["class_type"] == "ImageStitch":
        inputs = prompt[place]["inputs"]
        found += [inputs["image2"][0]] if inputs["direction"] == "right" else []
        place = inputs["image1"][0]
    return [place, *reversed(found)]


def test_the_demo_compares_like_with_like():
    """Each sampling of the demo has one thing more than the last and all else in common, and on the page there is one
    place to set each value: else the comparison would show something else."""
    prompt = read(FOLDER / "api" / "omniportrait_demo.json")
    plain, pivot, attended, guided = (
        prompt[prompt[decoded]["inputs"]["samples"][0]]["inputs"] for decoded in compared(prompt)
    )
    assert {name: guided[name] for name in attended} == attended and guided["strength"] > 0
    assert {name for name in pivot if pivot[name] != attended[name]} == {"model"}
    assert {name for name in plain if plain[name] != pivot[name]} == {"positive"}
    words, encoded = (prompt[each["positive"][0]]["inputs"] for each in (plain, pivot))
    assert set(encoded) - set(words) == {"pivot_encoder"} and words.items() <= encoded.items()
    attention = prompt[attended["model"][0]]
    assert attention["class_type"] == "OmniPortraitReferenceAttention" and attention["inputs"]["strength"] > 0
    assert attention["inputs"]["model"] == pivot["model"]
    nodes = {node["id"]: node for node in read(FOLDER / "omniportrait_demo.json")["nodes"]}
    for name in ("seed", "steps", "cfg", "sampler_name", "scheduler"):
        (one,) = (n for n in nodes.values() if n["outputs"] and n["outputs"][0].get("widget") == {"name": name})
        assert len(one["outputs"][0]["links"]) == 4, name


def test_links_are_known_at_both_ends(workflow):
    nodes = {node["id"]: node for node in workflow["nodes"]}
    leaving, arriving = set(), set()
    for number, origin, slot, target, place, kind in workflow["links"]:
        output, entry = nodes[origin]["outputs"][slot], nodes[target]["inputs"][place]
        assert number in output["links"] and number == entry["link"]
        assert output["type"] == kind and {kind, "*"} & set(entry["type"].split(","))
        assert nodes[origin]["order"] < nodes[target]["order"]
        leaving.add((number, origin, slot))
        arriving.add((number, target))
    said = {(n, i, s) for i, node in nodes.items() for s, o in enumerate(node["outputs"]) for n in o["links"] or ()}
    heard = {(entry["link"], i) for i, node in nodes.items() for entry in node["inputs"]}
    assert said == leaving and {each for each in heard if each[0] is not None} == arriving
    assert workflow["last_node_id"] == max(nodes)
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])
    assert sorted(node["order"] for node in nodes.values()) == list(range(len(nodes)))


def box(node: dict) -> tuple[float, float, float, float]:
    (left, top), (width, height) = node["pos"], node["size"]
    return left, top - TITLE, left + width, top + height


def apart(a: tuple, b: tuple) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def inside(a: tuple, b: tuple) -> bool:
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


def test_nothing_lies_on_top_of_anything(workflow):
    for one, other in itertools.combinations(workflow["nodes"], 2):
        assert apart(box(one), box(other)), f"{one['title']} and {other['title']}"
    bounds = [(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in workflow["groups"])]
    for one, other in itertools.combinations(bounds, 2):
        assert apart(one, other)
    for node in real(workflow):
        assert sum(inside(box(node), each) for each in bounds) == 1, f"{node['title']} is in no group"


def test_app_mode_shows_what_there_is(workflow):
    """photo, prompt and the like are widgets of the graph, and the results are nodes that show pictures."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    app = workflow["extra"]["linearData"]
    for number, widget in app["inputs"]:
        names = {entry["name"] for entry in nodes[number]["inputs"] if "widget" in entry}
        assert widget in names or (nodes[number]["type"], widget) == ("PrimitiveNode", "value"), (number, widget)
    assert app["outputs"] and all(nodes[number]["type"] in SHOWS for number in app["outputs"])


SHOWS = ("SaveImage", "PreviewImage", "OmniPortraitSaveIdentity")


def test_a_file_to_download_is_told_with_its_folder(workflow):
    """For each file that a loader names; what our own loaders read is not public."""
    for node in real(workflow):
        names = [value for value in node.get("widgets_values", ()) if str(value).endswith((".safetensors", ".bin"))]
        own = node["type"].startswith("OmniPortrait")
        public = {name for name in names if not (own or name.startswith("omniportrait_"))}
        told = {each["name"]: each for each in node["properties"].get("models", ())}
        assert public == set(told), node["title"]
        assert all(each["url"].startswith("https://") and each["directory"] for each in told.values())
