"""Every API workflow runs to its end on a real server and saves pictures that show something."""

from __future__ import annotations

import io

import numpy
import pytest
from conftest import api_workflows, read_api
from PIL import Image


@pytest.mark.parametrize("name", [path.stem for path in api_workflows()])
def test_workflow_runs_to_the_end(server, ask, name):
    prompt = read_api(name)
    outputs = ask(prompt)
    saving = {node_id for node_id, node in prompt.items() if node["class_type"] in ("SaveImage", "PreviewImage")}
    assert saving and saving == {node_id for node_id, given in outputs.items() if "images" in given}
    for node_id in saving:
        for image in outputs[node_id]["images"]:
            pixels = numpy.asarray(Image.open(io.BytesIO(server.fetch(image))).convert("RGB"), dtype=float)
            assert numpy.isfinite(pixels).all()
            if "portrait" in prompt[node_id]["inputs"].get("filename_prefix", ""):
                assert pixels.std() > 2, f"{node_id} of {name} is an empty picture"
