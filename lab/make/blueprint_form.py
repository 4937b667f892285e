"""A blueprint as ComfyUI serves it to its page: one node whose inside is a workflow.

`blueprint` of the source has title, description and aliases, the inputs that the node shows, each with the nodes inside
and their inputs that it feeds, and its outputs, each with a node inside and its output.
"""

from __future__ import annotations

from .graph import Workflow
from .layout import arrange
from .page_form import form_id, group_forms, node_forms, socket_of

INSIDE, OUTSIDE = -10, -20
"""Ids of a subgraph's own ends."""
LEFT = 300
"""Where the inputs stand, left of the first group."""


def blueprint_form(workflow: Workflow) -> dict:
    """`subgraphs/TITLE.json`."""
    told = workflow.source["blueprint"]
    inside = _Inside(workflow)
    for name, targets in told["inputs"].items():
        inside.enter(name, targets)
    for name, (number, output) in told["outputs"].items():
        inside.leave(name, number, output)
    definition = inside.form()
    return {
        "id": form_id(workflow.name),
        "revision": 0,
        "last_node_id": inside.last,
        "last_link_id": 0,
        "nodes": [inside.node()],
        "links": [],
        "groups": [],
        "version": 0.4,
        "definitions": {"subgraphs": [definition]},
        "extra": {"BlueprintDescription": told["description"], "BlueprintSearchAliases": told["aliases"]},
    }


class _Inside:
    """The subgraph while its ends are tied to the nodes inside."""

    def __init__(self, workflow: Workflow) -> None:
        self.workflow, self.told = workflow, workflow.source["blueprint"]
        self.id = form_id(f"{workflow.name}/inside")
        self.last = max(workflow.nodes) + 1
        self.layout = arrange(workflow)
        self.right = max(box.x + box.width for box in self.layout.nodes.values())
        self.nodes = {node["id"]: node for node in node_forms(workflow, self.layout)}
        self.links = [
            _link(each.id, each.origin, each.slot, each.target, socket_of(workflow, each), each.kind)
            for each in workflow.links
        ]
        self.inputs: list[dict] = []
        self.outputs: list[dict] = []
        self.shown: list[dict] = []
        """The inputs as the node outside has them: sockets and widgets."""

    def enter(self, name: str, targets: list[list]) -> None:
        """An input of the node, which feeds these inputs inside: [node, input]."""
        place, numbers, entry = len(self.inputs), [], {}
        for number, target in targets:
            entries = self.nodes[number]["inputs"]
            slot = [each["name"] for each in entries].index(target)
            entry = entries[slot]
            entry["link"] = len(self.links) + 1
            numbers.append(entry["link"])
            self.links.append(_link(entry["link"], INSIDE, place, number, slot, entry["type"]))
        self.inputs.append(self._port(name, entry["type"], numbers, LEFT, place))
        widget = {"widget": {"name": name}} if "widget" in entry else {}
        self.shown.append({"localized_name": name, "name": name, "type": entry["type"], **widget, "link": None})

    def leave(self, name: str, number: int, source: str) -> None:
        """An output of the node, which an output inside gives."""
        place, link = len(self.outputs), len(self.links) + 1
        slot, kind = self.workflow.nodes[number].shape.output(source)
        output = self.nodes[number]["outputs"][slot]
        output["links"] = [*(output["links"] or []), link]
        self.links.append(_link(link, number, slot, OUTSIDE, place, kind))
        self.outputs.append(self._port(name, kind, [link], self.right + 90, place))

    def _port(self, name: str, kind: str, links: list[int], x: int, place: int) -> dict:
        return {
            "id": form_id(f"{self.workflow.name}/{name}/{kind}"),
            "name": name,
            "type": kind,
            "linkIds": links,
            "localized_name": name,
            "pos": [x, 40 + 20 * place],
        }

    def form(self) -> dict:
        """The subgraph's definition."""
        groups = group_forms(self.layout)
        counts = {"lastGroupId": len(groups), "lastNodeId": self.last, "lastLinkId": len(self.links)}
        return {
            "id": self.id,
            "version": 1,
            "state": {**counts, "lastRerouteId": 0},
            "revision": 0,
            "config": {},
            "name": self.told["title"],
            "inputNode": {"id": INSIDE, "bounding": [LEFT - 120, 20, 120, 40 + 20 * len(self.inputs)]},
            "outputNode": {"id": OUTSIDE, "bounding": [self.right + 80, 20, 120, 40 + 20 * len(self.outputs)]},
            "inputs": self.inputs,
            "outputs": self.outputs,
            "widgets": [],
            "nodes": list(self.nodes.values()),
            "groups": groups,
            "links": self.links,
            "extra": {},
            "category": "OmniPortrait",
            "description": self.told["description"],
        }

    def node(self) -> dict:
        """The one node that stands for it."""
        return {
            "id": self.last,
            "type": self.id,
            "pos": [LEFT, 20],
            "size": [400, 140 + 24 * len(self.shown)],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": self.shown,
            "outputs": [
                {"localized_name": each["name"], "name": each["name"], "type": each["type"], "links": []}
                for each in self.outputs
            ],
            "title": self.told["title"],
            "properties": {},
            "widgets_values": [],
        }


def _link(number: int, origin: int, slot: int, target: int, place: int, kind: str) -> dict:
    return {
        "id": number,
        "origin_id": origin,
        "origin_slot": slot,
        "target_id": target,
        "target_slot": place,
        "type": kind,
    }
