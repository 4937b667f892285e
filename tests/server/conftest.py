"""Tests against a real ComfyUI server, started once, with random stand-ins for every model file that is named."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from omniportrait import environment

environment.use_comfyui()

import standin_files
from omniportrait.demo.main import CUSTOM_NODES, device_arguments, python_for
from omniportrait.demo.server import ComfyServer
from omniportrait.lab.make.shapes import other_packs

ROOT = Path(environment.__file__).resolve().parent
WORKFLOWS = ROOT / "workflows"
SIZE = 256
STEPS, BATCH = 2, 2
ONE_THREAD = "OMP_NUM_THREADS", "1"
"""Of a server's environment: it shares two cores with the tests' other process, as tests/conftest.py says."""
STANDINS = Path(__file__).parent / "standin_nodes"
PACKS = Path(__file__).parent / "standin_packs"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs the server is slow."""
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.server)
            if {"server", "demo"} & set(item.fixturenames):
                item.add_marker(pytest.mark.slow)


def api_workflows() -> list[Path]:
    """Those that run here: other packs' nodes are stood in for by name only."""
    paths = sorted((WORKFLOWS / "api").glob("*.json"))
    packs = other_packs()
    kinds = {path: {node["class_type"] for node in json.loads(path.read_text("utf-8")).values()} for path in paths}
    return [path for path in paths if not kinds[path] & set(packs)]


def page_workflows() -> list[Path]:
    return sorted(WORKFLOWS.glob("*.json"))


def read_api(name: str) -> dict:
    """An API workflow with size, batch, steps and presence reduced, and nothing else changed."""
    prompt = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        reduce_node(node["class_type"], node["inputs"])
    return prompt


def reduce_node(kind: str, inputs: dict) -> None:
    """Size, batch, steps and presence of one node, in place; masks scale with the picture, so that regions stay where
    they are."""
    for name in {"width", "height", "x", "y", "side"} & set(inputs):
        if isinstance(inputs[name], int):
            inputs[name] = inputs[name] * SIZE // 1024 if "Mask" in kind else SIZE
    if isinstance(inputs.get("megapixels"), float):
        inputs["megapixels"] = (SIZE / 1024) ** 2
    for name, most in (("steps", STEPS), ("batch_size", BATCH)):
        if isinstance(inputs.get(name), int):
            inputs[name] = min(most, inputs[name])
    if "presence" in inputs:  # random weights see nobody
        inputs["presence"] = 0.0


@pytest.fixture(scope="session")
def pinned(server) -> bool:
    """Whether the server is of the ComfyUI that the pack is developed on."""
    return server.get("/system_stats")["system"]["comfyui_version"] == environment.COMFYUI_VERSION


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory):
    """The running server; its base folder holds stand-ins for what all workflows name."""
    base = tmp_path_factory.mktemp("comfy")
    for path in api_workflows():
        standin_files.provide(base, read_api(path.stem))
    comfyui = environment.find_comfyui()
    python = python_for(comfyui)
    nodes = CUSTOM_NODES | {"standin-models": STANDINS, "standin-packs": PACKS}
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(*ONE_THREAD)
            arguments = device_arguments(python)
            running = stack.enter_context(ComfyServer(comfyui, python, base, nodes, arguments=arguments))
        yield running
