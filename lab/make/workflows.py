"""Write our workflows and blueprints in ComfyUI's forms: `python run.py make workflows`.

A source in workflow_sources/ says which nodes there are, how they are connected, what differs from their defaults, and
in which groups and columns they stand. From it come workflows/NAME.json for the page, workflows/api/NAME.json for
scripts, and for a blueprint subgraphs/TITLE.json. Sockets, widgets and defaults are those of the nodes as they are now.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from ... import environment
from ...demo.main import CUSTOM_NODES, device_arguments, python_for
from ...demo.server import ComfyServer
from .blueprint_form import blueprint_form
from .graph import PRIMITIVE, Workflow, read
from .page_form import page_form
from .shapes import shapes

ROOT = Path(__file__).parents[2]
SOURCES = Path(__file__).parent / "workflow_sources"


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="run.py make workflows", description=__doc__, allow_abbrev=False)
    parser.parse_args(words)
    comfyui = environment.find_comfyui()
    python = python_for(comfyui)
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(comfyui, python, Path(base), CUSTOM_NODES, arguments=device_arguments(python)) as server,
    ):
        told = server.get("/object_info")
    for path, text in files(ROOT, told).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))


def files(root: Path, object_info: dict[str, dict]) -> dict[Path, str]:
    """What every workflow and blueprint should hold, by its path. object_info: what a server tells of its nodes."""
    known = shapes(object_info)
    forms: dict[Path, dict] = {}
    for path in sorted(SOURCES.glob("*.yaml")):
        workflow = read(path, known)
        if "blueprint" in workflow.source:
            forms[root / "subgraphs" / f"{workflow.source['blueprint']['title']}.json"] = blueprint_form(workflow)
        else:
            forms[root / "workflows" / f"{workflow.name}.json"] = page_form(workflow)
            forms[root / "workflows" / "api" / f"{workflow.name}.json"] = api_form(workflow)
    return {
        path: json.dumps(form, indent=2 if path.parent.name == "api" else 1, ensure_ascii=False) + "\n"
        for path, form in forms.items()
    }


def api_form(workflow: Workflow) -> dict:
    """As scripts send it: for each node its widgets' values and where the rest comes from."""
    form: dict[str, dict] = {}
    for node in workflow.nodes.values():
        if node.type == PRIMITIVE:
            continue
        inputs: dict[str, object] = {}
        for slot in node.shape.inputs:
            origin, output = node.links.get(slot.name, (0, ""))
            if origin and workflow.nodes[origin].type != PRIMITIVE:
                inputs[slot.name] = [str(origin), workflow.nodes[origin].shape.output(output)[0]]
            elif slot.widget:
                inputs[slot.name] = workflow.value(node, slot.name)
        form[str(node.id)] = {"class_type": node.type, "inputs": inputs, "_meta": {"title": node.title}}
    return dict(sorted(form.items(), key=lambda item: int(item[0])))
