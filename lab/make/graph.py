"""A workflow's source, read against what the nodes are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from .shapes import Shape

PRIMITIVE = "PrimitiveNode"
"""The page's own node for a value that several widgets share. Scripts get the value instead."""


@dataclass(frozen=True)
class Node:
    """One node. values: of its widgets, by name. links: which node and output an input comes from, by its name."""

    id: int
    type: str
    title: str
    shape: Shape
    values: dict[str, object]
    links: dict[str, tuple[int, str]]


@dataclass(frozen=True)
class Link:
    """From an output of one node, by its place, to an input of another, by its name."""

    id: int
    origin: int
    slot: int
    target: int
    name: str
    kind: str


@dataclass(frozen=True)
class Workflow:
    """A source, read against the nodes' shapes."""

    name: str
    source: dict
    nodes: dict[int, Node]

    @cached_property
    def links(self) -> list[Link]:
        """In the order of the nodes and their inputs. Raises: ValueError for an output that is not there."""
        found: list[Link] = []
        for node in self.nodes.values():
            for name, (origin, output) in node.links.items():
                slot, kind = self.nodes[origin].shape.output(output)
                if self.nodes[origin].type == PRIMITIVE:
                    kind = node.shape.by_name[name].kind
                found.append(Link(len(found) + 1, origin, slot, node.id, name, kind))
        return found

    def value(self, node: Node, name: str) -> object:
        """Of a widget, or of the primitive that feeds it."""
        origin = self.nodes.get(node.links.get(name, (0, ""))[0])
        return origin.values["value"] if origin and origin.type == PRIMITIVE else node.values[name]

    @cached_property
    def order(self) -> dict[int, int]:
        """In which the nodes can run."""
        left, order = dict(self.nodes), {}
        while left:
            ready = [
                each for each, node in left.items() if not {origin for origin, _ in node.links.values()} & set(left)
            ]
            if not ready:
                raise ValueError(f"{self.name}: nodes {', '.join(map(str, left))} wait for each other")
            order |= {each: len(order) + place for place, each in enumerate(ready)}
            left = {each: node for each, node in left.items() if each not in order}
        return order


def read(path: Path, known: dict[str, Shape]) -> Workflow:
    """Raises: ValueError, with file and node, for what the nodes do not know."""
    source = yaml.safe_load(path.read_text(encoding="utf-8"))
    nodes: dict[int, Node] = {}
    for number, told in _told(source):
        try:
            nodes[number] = _node(number, told, known)
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path.name}, node {number}: {error}") from error
    return Workflow(path.stem, source, nodes)


def _told(source: dict) -> Iterator[tuple[int, dict]]:
    for group in source["groups"]:
        for column in group["columns"]:
            yield from column["nodes"].items()


def _node(number: int, told: dict, known: dict[str, Shape]) -> Node:
    if told["type"] == PRIMITIVE:
        return Node(number, PRIMITIVE, told["title"], Shape((), (("value", "*"),)), {"value": told["value"]}, {})
    shape, given = known[told["type"]], told.get("inputs") or {}
    unknown = set(given) - set(shape.by_name)
    if unknown:
        raise ValueError(f"{told['type']} has no input {', '.join(sorted(unknown))}")
    links = {slot.name: tuple(given[slot.name]) for slot in shape.inputs if isinstance(given.get(slot.name), list)}
    values = {slot.name: given.get(slot.name, slot.value) for slot in shape.widgets}
    values |= {name: shape.by_name[name].value for name in links if name in values}
    return Node(number, told["type"], told["title"], shape, values, links)
