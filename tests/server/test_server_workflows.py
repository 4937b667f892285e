"""Every API workflow runs to its end on a real server and saves pictures that show something, and both forms are what
`run.py make workflows` makes of their sources."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import numpy
import pytest
import standin_files
from conftest import ROOT, api_workflows, read_api
from omniportrait.lab.make.workflows import files
from PIL import Image


def checkpoints(workflow: Path) -> list[str]:
    """Those that it loads. Workflows of one checkpoint in a row find it loaded."""
    nodes = json.loads(workflow.read_text(encoding="utf-8")).values()
    return sorted(node["inputs"]["ckpt_name"] for node in nodes if node["class_type"] == "CheckpointLoaderSimple")


@pytest.fixture(scope="module")
def run(server):
    """The workflow of a name as it is run, and its outputs by node id: each is run once. Both are to be left as they
    are."""

    @functools.cache
    def once(name: str) -> tuple[dict, dict]:
        prompt = read_api(name)
        standin_files.provide(server.base, prompt)
        return prompt, server.run(prompt)

    return once


@pytest.mark.parametrize("name", [path.stem for path in sorted(api_workflows(), key=checkpoints)])
def test_workflow_runs_to_the_end(server, run, name):
    prompt, outputs = run(name)
    kinds = ("SaveImage", "PreviewImage", "OmniPortraitSaveIdentity")
    saving = {node_id for node_id, node in prompt.items() if node["class_type"] in kinds}
    assert saving and saving <= {node_id for node_id, given in outputs.items() if "images" in given}
    for node_id in saving:
        for image in outputs[node_id]["images"]:
            pixels = numpy.asarray(Image.open(io.BytesIO(server.fetch(image))).convert("RGB"), dtype=float)
            assert numpy.isfinite(pixels).all()
            if "portrait" in prompt[node_id]["inputs"].get("filename_prefix", ""):
                assert pixels.std() > 2, f"{node_id} of {name} is an empty picture"


def test_both_forms_are_up_to_date(server, pinned):
    """With the nodes as the server tells of them: inputs, defaults, outputs."""
    if not pinned:
        pytest.skip("the files are those of the pinned ComfyUI, whose own nodes have other outputs here")
    wanted = files(ROOT, server.get("/object_info"))
    for path, text in wanted.items():
        assert path.is_file() and path.read_text(encoding="utf-8") == text, f"{path.name}: `run.py make workflows`"
    there = {*(ROOT / "workflows").rglob("*.json"), *(ROOT / "subgraphs").glob("*.json")}
    assert there == set(wanted), "a file without a source in lab/make/workflow_sources"


def test_nodes_show_their_results(server, run):
    """Which face was taken, the trace and its line: told to the page as pictures and text of the nodes themselves."""
    prompt, outputs = run("omniportrait_demo")
    by_kind = {prompt[node_id]["class_type"]: told for node_id, told in outputs.items()}
    for kind in ("OmniPortraitFaceReference", "OmniPortraitRBGuidanceKSampler"):
        (image,) = by_kind[kind]["images"]
        assert image["type"] == "temp" and Image.open(io.BytesIO(server.fetch(image))).size[0] > 200
    (text,) = by_kind["OmniPortraitRBGuidanceKSampler"]["text"]
    assert text.startswith("RB-Guidance: ") and "calls guided" in text
