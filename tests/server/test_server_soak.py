"""ComfyUI's node cache, two clients at once, and a short soak; `python run.py bench soak` is the long one."""

from __future__ import annotations

import copy
import itertools
import sys
import threading
import uuid

import pytest
import standin_files
from conftest import ROOT
from omniportrait.demo import main
from omniportrait.demo.server import PromptError

sys.path.insert(0, str(ROOT / "benchmarks"))

import soak  # noqa: E402

SIZE, STEPS = 128, 3
crops = itertools.count(start=15)
names = map("".join, itertools.product("abcdef", repeat=3))  # a 2 in the name is the other person


@pytest.fixture
def prompt(server):
    """A guided prompt with a photograph of its own, so that no other test's cache answers it."""
    made = soak.workflow(SIZE, STEPS, next(crops) / 10)
    photo = f"own_{next(names)}.png"
    main.node(made, "LoadImage")["image"] = photo
    standin_files.provide(server.base, made)
    return made


def bits(server, outputs: dict) -> bytes:
    saved = outputs["save"]["latents"][0]
    return soak.latent_bytes(server.base / "output" / saved["subfolder"] / saved["filename"])


def run_again(server, prompt: dict) -> tuple[bytes, set[str]]:
    """The latent's bits, and the kinds of node that ComfyUI ran; the saving node always runs."""
    prompt["save"]["inputs"]["filename_prefix"] = uuid.uuid4().hex
    prompt_id, outputs = soak.submit(server, prompt)
    ran = set(prompt) - soak.cached_nodes(server, prompt_id)
    return bits(server, outputs), {prompt[key]["class_type"] for key in ran} - {"SaveLatent"}


def test_the_node_cache_follows_what_changed_and_nothing_else(server, prompt):
    first, ran = run_again(server, prompt)
    assert {"OmniPortraitFaceReference", "OmniPortraitPivotConditioning", "OmniPortraitRBGuidanceKSampler"} <= ran
    same, ran = run_again(server, prompt)
    assert same == first and not ran

    sampler = main.node(prompt, "OmniPortraitRBGuidanceKSampler")
    sampler["strength"] = 0.5
    weaker, ran = run_again(server, prompt)
    assert weaker != first and ran == {"OmniPortraitRBGuidanceKSampler"}
    sampler["strength"] = 1.0
    again, ran = run_again(server, prompt)
    assert again == first and ran == {"OmniPortraitRBGuidanceKSampler"}


def test_another_photograph_under_the_same_name_is_another_person(server, prompt):
    name = main.node(prompt, "LoadImage")["image"]
    first, _ = run_again(server, prompt)
    main.save_photo(main.second_photo(), server.base / "input" / name)
    second, ran = run_again(server, prompt)
    assert second != first
    assert {"LoadImage", "OmniPortraitFaceReference", "OmniPortraitPivotConditioning"} <= ran
    assert "CheckpointLoaderSimple" not in ran
    standin_files.photograph(server.base / "input" / name)
    assert run_again(server, prompt)[0] == first


@pytest.mark.parametrize(
    "name", ["../checkpoints/omniportrait_demo.safetensors", "/etc/hostname", "..\\x", "a/../../b"]
)
def test_a_name_that_leaves_the_folder_is_no_file(server, prompt, name):
    """Refused in the same words as a name that does not exist, so nothing is learnt about files elsewhere."""
    prompt["encoder"] = {"class_type": "OmniPortraitPivotEncoderLoader", "inputs": {"pivot_encoder_name": name}}
    main.node(prompt, "OmniPortraitPivotConditioning")["pivot_encoder"] = ["encoder", 0]
    with pytest.raises(PromptError, match="There is no pivot encoder"):
        server.run(prompt)


def test_two_clients_get_what_is_theirs(server, prompt):
    """Two pages on one server, queueing guided and plain prompts at the same moment, see what each sees alone."""
    plain = soak.workflow(SIZE, STEPS, None)
    main.node(plain, "LoadImage")["image"] = main.node(prompt, "LoadImage")["image"]
    prompts = {"guided": prompt, "plain": plain}
    alone = {name: run_again(server, copy.deepcopy(each))[0] for name, each in prompts.items()}
    assert alone["guided"] != alone["plain"]
    seen: dict[str, list] = {name: [] for name in prompts}
    progress: dict[str, list] = {name: [] for name in prompts}
    barrier = threading.Barrier(2)

    def browse(name: str) -> None:
        client = copy.copy(server)
        client.client_id = uuid.uuid4().hex
        for number in range(3):
            own = copy.deepcopy(prompts[name])
            own["save"]["inputs"]["filename_prefix"] = f"{client.client_id}_{number}"
            barrier.wait(timeout=120)
            seen[name].append(bits(server, client.run(own, progress[name].append)))

    clients = [threading.Thread(target=browse, args=(name,)) for name in prompts]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert {name: set(pictures) for name, pictures in seen.items()} == {name: {bit} for name, bit in alone.items()}
    assert all(len(pictures) == 3 for pictures in seen.values()) and all(progress.values())


def test_a_short_soak(server):
    """A dozen prompts by turns: each plain picture, and each guided one of a crop, is the first one bit for bit."""
    standin_files.provide(server.base, soak.workflow(SIZE, STEPS, None))
    asked = [soak.ask(server, SIZE, STEPS, soak.turn(number)) for number in range(12)]
    assert not soak.changed(asked)
    assert len({a.name for a in asked}) == len({a.digest for a in asked}) == 4


def test_the_soak_s_own_verdict():
    def run_of(rss: list[int], digest: str = "a") -> list:
        digests = ["a"] * (len(rss) - 1) + [digest]
        return [soak.Asked("plain", d, 1.0, r * soak.MIB, 0) for r, d in zip(rss, digests, strict=True)]

    warm = [100, 200, 300, 400] + [500] * 16
    assert soak.report(run_of(warm), 32.0)
    assert not soak.report(run_of(warm, "b"), 32.0)
    assert not soak.report(run_of([500 + 10 * k for k in range(20)]), 32.0)
