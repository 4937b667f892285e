"""A workflow and a blueprint as ComfyUI's page saves them."""

from __future__ import annotations

import uuid
from functools import cache
from pathlib import Path

import yaml

from .graph import PRIMITIVE, Link, Node, Workflow
from .layout import Box, Layout, arrange
from .shapes import Slot

MODELS = Path(__file__).parent / "models.yaml"
OPTIONAL = 7
"""LiteGraph's shape of a socket that may stay empty."""
INSIDE, OUTSIDE = -10, -20
"""Ids of a subgraph's own ends."""
LEFT_END = 300
"""Where a blueprint's inputs stand, left of the first group."""


def page_form(workflow: Workflow) -> dict:
    """`workflows/NAME.json`."""
    layout = arrange(workflow)
    number = max(workflow.nodes) + 1
    note = {
        "id": number,
        "type": "MarkdownNote",
        **_place(layout.note),
        "flags": {},
        "order": len(workflow.nodes),
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "Read me",
        "properties": {},
        "widgets_values": [workflow.source["note"]],
        "color": "#432",
        "bgcolor": "#653",
    }
    extra: dict[str, object] = {"ds": {"scale": 0.6, "offset": [150, 150]}}
    if app := workflow.source.get("app"):
        extra["linearData"] = {"inputs": app["inputs"], "outputs": app["outputs"]}
    return {
        "id": _id(workflow.name),
        "revision": 0,
        "last_node_id": number,
        "last_link_id": len(workflow.links),
        "nodes": [*_nodes(workflow, layout), note],
        "links": [
            [each.id, each.origin, each.slot, each.target, _socket(workflow, each), each.kind]
            for each in workflow.links
        ],
        "groups": [_group(place, title, box) for place, (title, box) in enumerate(layout.groups, 1)],
        "config": {},
        "extra": extra,
        "version": 0.4,
    }


def blueprint_form(workflow: Workflow) -> dict:
    """`subgraphs/TITLE.json`: one node whose inside is the workflow.

    `blueprint` of the source has title, description and aliases, the inputs that the node shows, each with the nodes
    inside and their inputs that it feeds, and its outputs, each with a node inside and its output.
    """
    told = workflow.source["blueprint"]
    layout = arrange(workflow)
    nodes = {node["id"]: node for node in _nodes(workflow, layout)}
    links = [
        {
            "id": each.id,
            "origin_id": each.origin,
            "origin_slot": each.slot,
            "target_id": each.target,
            "target_slot": _socket(workflow, each),
            "type": each.kind,
        }
        for each in workflow.links
    ]
    right = max(box.x + box.width for box in layout.nodes.values())
    inputs, outputs, entries = [], [], []
    for place, (name, targets) in enumerate(told["inputs"].items()):
        numbers = [len(links) + at for at in range(1, len(targets) + 1)]
        for link, (number, target) in zip(numbers, targets, strict=True):
            slots = nodes[number]["inputs"]
            slot = next(at for at, entry in enumerate(slots) if entry["name"] == target)
            slots[slot]["link"] = link
            links.append(_end(link, INSIDE, place, number, slot, slots[slot]["type"]))
        kind, widget = slots[slot]["type"], "widget" in slots[slot]
        inputs.append(_port(workflow.name, name, kind, numbers, [LEFT_END, 40 + 20 * place]))
        shown = {"widget": {"name": name}} if widget else {}
        entries.append({"localized_name": name, "name": name, "type": kind, **shown, "link": None})
    for place, (name, (number, source)) in enumerate(told["outputs"].items()):
        link = len(links) + 1
        slot, kind = workflow.nodes[number].shape.output(source)
        output = nodes[number]["outputs"][slot]
        output["links"] = [*(output["links"] or []), link]
        links.append(_end(link, number, slot, OUTSIDE, place, kind))
        outputs.append(_port(workflow.name, name, kind, [link], [right + 90, 40 + 20 * place]))
    inner = _id(f"{workflow.name}/inside")
    last = max(workflow.nodes) + 1
    subgraph = {
        "id": inner,
        "version": 1,
        "state": {"lastGroupId": len(layout.groups), "lastNodeId": last, "lastLinkId": len(links), "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": told["title"],
        "inputNode": {"id": INSIDE, "bounding": [LEFT_END - 120, 20, 120, 40 + 20 * len(inputs)]},
        "outputNode": {"id": OUTSIDE, "bounding": [right + 80, 20, 120, 40 + 20 * len(outputs)]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": list(nodes.values()),
        "groups": [_group(place, title, box) for place, (title, box) in enumerate(layout.groups, 1)],
        "links": links,
        "extra": {},
        "category": "OmniPortrait",
        "description": told["description"],
    }
    outside = {
        "id": last,
        "type": inner,
        "pos": [LEFT_END, 20],
        "size": [400, 80 + 24 * len(entries) + 60],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": entries,
        "outputs": [{"localized_name": o["name"], "name": o["name"], "type": o["type"], "links": []} for o in outputs],
        "title": told["title"],
        "properties": {},
        "widgets_values": [],
    }
    return {
        "id": _id(workflow.name),
        "revision": 0,
        "last_node_id": last,
        "last_link_id": 0,
        "nodes": [outside],
        "links": [],
        "groups": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {"BlueprintDescription": told["description"], "BlueprintSearchAliases": told["aliases"]},
    }


def _nodes(workflow: Workflow, layout: Layout) -> list[dict]:
    return [_node(workflow, node, layout.nodes[node.id]) for node in workflow.nodes.values()]


def _node(workflow: Workflow, node: Node, box: Box) -> dict:
    arriving = {each.name: each.id for each in workflow.links if each.target == node.id}
    form = {
        "id": node.id,
        "type": node.type,
        **_place(box),
        "flags": {},
        "order": workflow.order[node.id],
        "mode": 0,
        "inputs": [_input(slot, arriving.get(slot.name)) for slot in _slots(node)],
        "outputs": _outputs(workflow, node),
        "title": node.title,
        "properties": {} if node.type == PRIMITIVE else {"Node name for S&R": node.type, **_models(node)},
    }
    if values := _values(workflow, node):
        form["widgets_values"] = values
    return form


def _slots(node: Node) -> list[Slot]:
    """In the page's order: sockets, then widgets, and behind an upload its button."""
    button = Slot("upload", "IMAGEUPLOAD", False, True)
    widgets = (each for slot in node.shape.widgets for each in ((slot, button) if slot.upload else (slot,)))
    return [*node.shape.sockets, *widgets]


def _input(slot: Slot, link: int | None) -> dict:
    form: dict[str, object] = {"localized_name": slot.name, "name": slot.name, "type": slot.kind}
    if slot.optional:
        form["shape"] = OPTIONAL
    if slot.widget:
        form["widget"] = {"name": slot.name}
    return form | {"link": link}


def _outputs(workflow: Workflow, node: Node) -> list[dict]:
    leaving = [each for each in workflow.links if each.origin == node.id]
    if node.type == PRIMITIVE:
        first = leaving[0]
        links = [each.id for each in leaving]
        return [{"name": first.name, "type": first.kind, "widget": {"name": first.name}, "links": links}]
    return [
        {"localized_name": name, "name": name, "type": kind, "links": [e.id for e in leaving if e.slot == at] or None}
        for at, (name, kind) in enumerate(node.shape.outputs)
    ]


def _values(workflow: Workflow, node: Node) -> list[object]:
    if node.type == PRIMITIVE:
        choice = [""] if isinstance(node.values["value"], str) else []  # a filter over the choices
        return [node.values["value"], "fixed", *choice]
    values: list[object] = []
    for slot in node.shape.widgets:
        values.append(workflow.value(node, slot.name))
        values += ["image"] if slot.upload else []
        values += ["fixed"] if slot.has_control else []
    return values


def _models(node: Node) -> dict:
    """Where to get the files that a loader names."""
    known = _known_models()
    named = [value for value in node.values.values() if value in known]
    return {"models": [{"name": name, **known[name]} for name in named]} if named else {}


@cache
def _known_models() -> dict[str, dict]:
    return yaml.safe_load(MODELS.read_text(encoding="utf-8"))


def _socket(workflow: Workflow, link: Link) -> int:
    return [slot.name for slot in _slots(workflow.nodes[link.target])].index(link.name)


def _end(number: int, origin: int, slot: int, target: int, place: int, kind: str) -> dict:
    return {
        "id": number,
        "origin_id": origin,
        "origin_slot": slot,
        "target_id": target,
        "target_slot": place,
        "type": kind,
    }


def _port(workflow: str, name: str, kind: str, links: list[int], pos: list[int]) -> dict:
    return {
        "id": _id(f"{workflow}/{name}/{kind}"),
        "name": name,
        "type": kind,
        "linkIds": links,
        "localized_name": name,
        "pos": pos,
    }


def _place(box: Box) -> dict:
    return {"pos": [box.x, box.y], "size": [box.width, box.height]}


def _group(number: int, title: str, box: Box) -> dict:
    bounding = [box.x, box.y, box.width, box.height]
    return {"id": number, "title": title, "bounding": bounding, "color": "#3f789e", "font_size": 24, "flags": {}}


def _id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"omniportrait/{name}"))
