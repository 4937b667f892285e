"""The user's cancel over HTTP, as ComfyUI's page sends it, in the middle of a guided prompt."""

from __future__ import annotations

import copy
import json
import re
import uuid

import pytest
import standin_files
import told
from omniportrait.demo.prompt import node
from omniportrait.demo.server import Progress, PromptError
from omniportrait.lab.bench import soak

SIZE, STEPS = 128, 10


def latent(server, prompt_id: str) -> bytes:
    """The bits that a prompt has saved, once it has ended; its sampling node must really have run for it."""
    entry = server.history(prompt_id)
    cached = [data["nodes"] for kind, data in entry["status"]["messages"] if kind == "execution_cached"]
    assert cached and not any("sampler" in nodes for nodes in cached)
    saved = entry["outputs"]["save"]["latents"][0]
    return soak.latent_bytes(server.base / "output" / saved["subfolder"] / saved["filename"])


def run(server, prompt: dict) -> bytes:
    with told.connected(server) as client:
        client.run(fresh(prompt))
    return latent(server, client.prompts[0])


def fresh(prompt: dict) -> dict:
    """The same prompt with a file of its own to save."""
    prompt = copy.deepcopy(prompt)
    prompt["save"]["inputs"]["filename_prefix"] = uuid.uuid4().hex
    return prompt


@pytest.mark.parametrize("named", [False, True], ids=["whatever runs", "this prompt"])
def test_interrupt_of_a_guided_prompt(server, named):
    """It ends as interrupted after some of its guided steps; the prompt that waits behind it and itself, queued once
    more, give the pictures that they gave before."""
    guided, plain = soak.workflow(SIZE, STEPS, 1.7), soak.workflow(SIZE, STEPS, None)
    for each in (guided, plain):
        node(each, "LoadImage")["image"] = f"interrupted_{named}.png"  # so that no other test's cache answers
        standin_files.provide(server.base, each)
    expected = run(server, guided)
    expected_plain = run(server, plain)
    assert expected != expected_plain
    logged, ids = len(server.log.read_text()), []

    def press(progress: Progress) -> None:
        if progress.text.endswith(f" 1/{STEPS}"):
            ids.append(server.get("/queue")["queue_running"][0][1])
            waiting = {"prompt": fresh(plain), "client_id": server.client_id}
            ids.append(json.loads(server.request("/prompt", waiting))["prompt_id"])
        elif progress.text.endswith(f" 3/{STEPS}"):
            server.request("/interrupt", {"prompt_id": ids[0]} if named else {})

    with pytest.raises(PromptError, match="interrupted"):
        server.run(fresh(guided), press)
    interrupted, waiting = ids
    ended = server.history(interrupted)
    (where,) = [data for kind, data in ended["status"]["messages"] if kind == "execution_interrupted"]
    assert where["node_id"] == "sampler" and where["node_type"] == "OmniPortraitRBGuidanceKSampler"
    assert not ended["status"]["completed"] and "save" not in ended["outputs"]
    assert latent(server, waiting) == expected_plain
    (calls,) = re.findall(r"RB-Guidance: (\d+) of \1 calls guided", server.log.read_text()[logged:])
    assert 3 <= int(calls) < STEPS
    assert run(server, guided) == expected
    assert server.process.poll() is None
