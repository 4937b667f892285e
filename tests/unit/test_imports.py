"""The house's rules: which room may import which, no circles between modules, and methods on torch alone."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from omniportrait import environment

ROOMS = {
    "__init__": {"nodes"},
    "environment": set(),
    "run": {"environment"},
    "nodes": {"sampling", "guidance", "models"},
    "sampling": {"guidance", "backbone", "models"},
    "guidance": {"models"},
    "backbone": set(),
    "models": set(),
    "training": {"guidance", "backbone", "sampling", "models", "environment"},
    "evaluation": {"models", "training", "demo", "environment"},
}
"""What each room may import beside itself. `lab` and `demo` are free; nobody else imports them, but for DOORS."""
DOORS: set[tuple[str, str]] = {
    ("training/base.py", "demo"),
    ("evaluation/command.py", "lab"),
}
"""A module, and the room that it opens beyond its own's rule."""
TYPED_VALUES = {"models/faces/__init__.py", "models/faces/reference.py"}
"""Of models, what a method may know."""
GUIDANCE_LIBRARIES = {"torch", "numpy", "scipy"}


@cache
def modules() -> dict[str, Path]:
    """Every module of the pack by its path from the root."""
    root = environment.ROOT
    folders = (root / name for name in (*ROOMS, "lab", "demo"))
    files = [*root.glob("*.py"), *(file for folder in folders for file in sorted(folder.rglob("*.py")))]
    return {file.relative_to(root).as_posix(): file for file in files}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


def room_of(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


def imported(name: str, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """The modules of the pack among some statements."""
    folder = name.split("/")[:-1]
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            parent = [*folder[: len(folder) - node.level + 1], *(node.module or "").split(".")]
            for each in ([*parent, alias.name] for alias in node.names):
                found = [p for p in candidates([part for part in each if part]) if p in modules()]
                assert found, f"{name} imports {'.'.join(each)}, which is not there"
                yield found[0]


def candidates(parts: list[str]) -> Iterator[str]:
    """Where a dotted name may stand: a module, a package, or something inside one."""
    for length in (len(parts), len(parts) - 1):
        path = "/".join(parts[:length])
        yield f"{path}.py"
        yield f"{path}/__init__.py" if path else "__init__.py"


def outside(name: str) -> Iterator[str]:
    """Top-level names that are imported absolutely."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_lies_below(room):
    names = [name for name in modules() if room_of(name) == room]
    assert names
    for name in names:
        for other in imported(name, ast.walk(tree(name))):
            allowed = room_of(other) in ROOMS[room] | {room} or (name, room_of(other)) in DOORS
            assert allowed, f"{name} imports {other}: {room} may import {', '.join(sorted(ROOMS[room])) or 'nothing'}"


def test_every_door_is_used():
    for name, room in DOORS:
        assert room in map(room_of, imported(name, ast.walk(tree(name)))), f"{name} no longer imports {room}"


def test_no_circles():
    """Of modules; an import inside a function counts."""
    graph = {name: set(imported(name, ast.walk(tree(name)))) - {name} for name in modules()}
    assert sum(map(len, graph.values())) > 100
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_methods_are_torch_alone():
    for name in (name for name in modules() if room_of(name) == "guidance"):
        assert set(outside(name)) <= GUIDANCE_LIBRARIES | set(sys.stdlib_module_names), name
        known = {other for other in imported(name, ast.walk(tree(name))) if room_of(other) == "models"}
        assert known <= TYPED_VALUES, name


def test_nobody_imports_the_pack_by_name():
    """ComfyUI chooses a folder's module name; only the door, which loads the pack, knows it."""
    assert {name for name in modules() if "omniportrait" in outside(name)} <= {"run.py", "environment.py"}
