"""A workflow as ComfyUI's page saves it."""

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
        "id": form_id(workflow.name),
        "revision": 0,
        "last_node_id": number,
        "last_link_id": len(workflow.links),
        "nodes": [*node_forms(workflow, layout), note],
        "links": [
            [each.id, each.origin, each.slot, each.target, socket_of(workflow, each), each.kind]
            for each in workflow.links
        ],
        "groups": group_forms(layout),
        "config": {},
        "extra": extra,
        "version": 0.4,
    }


def node_forms(workflow: Workflow, layout: Layout) -> list[dict]:
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


def socket_of(workflow: Workflow, link: Link) -> int:
    return [slot.name for slot in _slots(workflow.nodes[link.target])].index(link.name)


def _place(box: Box) -> dict:
    return {"pos": [box.x, box.y], "size": [box.width, box.height]}


def group_forms(layout: Layout) -> list[dict]:
    look = {"color": "#3f789e", "font_size": 24, "flags": {}}
    return [
        {"id": place, "title": title, "bounding": [box.x, box.y, box.width, box.height], **look}
        for place, (title, box) in enumerate(layout.groups, 1)
    ]


def form_id(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"omniportrait/{name}"))
