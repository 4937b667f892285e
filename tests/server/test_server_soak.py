"""ComfyUI's node cache, two clients at once, and a short soak; `python run.py bench soak` is the long one."""

from __future__ import annotations

import copy
import itertools
import threading
import uuid

import pytest
import standin_files
import told
from omniportrait.demo import main
from omniportrait.demo.prompt import node
from omniportrait.demo.server import PromptError
from omniportrait.lab.bench import soak, soak_report

SIZE, STEPS = 128, 3
crops = itertools.count(start=15)
names = map("".join, itertools.product("abcdef", repeat=3))  # a 2 in the name is the other person


@pytest.fixture
def prompt(server):
    """A guided prompt with a photograph of its own, so that no other test's cache answers it."""
    made = soak.workflow(SIZE, STEPS, next(crops) / 10)
    photo = f"own_{next(names)}.png"
    node(made, "LoadImage")["image"] = photo
    standin_files.provide(server.base, made)
    return made


def bits(server, outputs: dict) -> bytes:
    saved = outputs["save"]["latents"][0]
    return soak.latent_bytes(server.base / "output" / saved["subfolder"] / saved["filename"])


def run_again(server, prompt: dict) -> tuple[bytes, set[str]]:
    """The latent's bits, and the kinds of node that ComfyUI ran; the saving node always runs."""
    prompt["save"]["inputs"]["filename_prefix"] = uuid.uuid4().hex
    with server.listening() as events:
        prompt_id = soak.submit(server, prompt)
        soak.wait(server, events, prompt_id)
    entry = server.history(prompt_id)
    ran = set(prompt) - soak.cached_nodes(entry)
    return bits(server, entry["outputs"]), {prompt[key]["class_type"] for key in ran} - {"SaveLatent"}


def test_the_node_cache_follows_what_changed_and_nothing_else(server, prompt):
    first, ran = run_again(server, prompt)
    assert {"OmniPortraitFaceReference", "OmniPortraitPivotConditioning", "OmniPortraitRBGuidanceKSampler"} <= ran
    same, ran = run_again(server, prompt)
    assert same == first and not ran

    sampler = node(prompt, "OmniPortraitRBGuidanceKSampler")
    sampler["strength"] = 0.5
    weaker, ran = run_again(server, prompt)
    assert weaker != first and ran == {"OmniPortraitRBGuidanceKSampler"}
    sampler["strength"] = 1.0
    again, ran = run_again(server, prompt)
    assert again == first and ran == {"OmniPortraitRBGuidanceKSampler"}


def test_another_photograph_under_the_same_name_is_another_person(server, prompt):
    name = node(prompt, "LoadImage")["image"]
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
    node(prompt, "OmniPortraitPivotConditioning")["pivot_encoder"] = ["encoder", 0]
    with pytest.raises(PromptError, match="There is no pivot encoder"):
        server.run(prompt)


def test_two_clients_get_what_is_theirs(server, prompt, pinned):
    """Two pages on one server, queueing guided and plain prompts at the same moment, see what each sees alone, and are
    told of nothing that is the other's."""
    plain = soak.workflow(SIZE, STEPS, None)
    node(plain, "LoadImage")["image"] = node(prompt, "LoadImage")["image"]
    prompts = {"guided": prompt, "plain": plain}
    alone = {name: run_again(server, copy.deepcopy(each))[0] for name, each in prompts.items()}
    assert alone["guided"] != alone["plain"]
    seen: dict[str, list] = {name: [] for name in prompts}
    barrier = threading.Barrier(2)

    def browse(name: str, client: told.Client) -> None:
        for number in range(3):
            own = copy.deepcopy(prompts[name])
            own["save"]["inputs"]["filename_prefix"] = f"{client.id}_{number}"
            barrier.wait(timeout=120)
            seen[name].append(bits(server, client.run(own)))

    with told.connected(server) as first, told.connected(server) as second:
        clients = dict(zip(prompts, (first, second), strict=True))
        threads = [threading.Thread(target=browse, args=each) for each in clients.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client in clients.values():
            client.listen_until_idle()
    assert {name: set(pictures) for name, pictures in seen.items()} == {name: {bit} for name, bit in alone.items()}
    for client in clients.values():
        assert len(client.prompts) == 3
        told.assert_own(client.messages, client.prompts, "sampler", STEPS, every=pinned)
        for number, prompt_id in enumerate(client.prompts):
            (saved,) = told.outputs_of(client.messages, prompt_id)["save"]["latents"]
            assert saved["filename"].startswith(f"{client.id}_{number}")


def test_a_short_soak(server):
    """Eight prompts by turns, each queued while others run: each plain picture, and each guided one of a crop, is the
    first one bit for bit; the server is never without work, and keeps no record of it in the end."""
    standin_files.provide(server.base, soak.workflow(SIZE, STEPS, None))
    asked, queued, history = [], [], server.get("/history").keys()
    for each in soak.ask(server, SIZE, STEPS, [soak.turn(number) for number in range(8)], ahead=2):
        asked.append(each)
        queue = server.get("/queue")
        queued.append(len(queue["queue_running"]) + len(queue["queue_pending"]))
    assert [a.name for a in asked[:4]] == ["plain", "guided, crop 1.6", "plain", "guided, crop 2.0"]
    assert not soak_report.changed(asked) and not soak_report.unguided(asked)
    assert len({a.name for a in asked}) == len({a.digest for a in asked}) == 4
    assert len(queued) == 8 and all(queued[:-2]) and queued[-1] == 0
    assert all(a.start < a.end <= b.start and a.rss for a, b in itertools.pairwise(asked))
    assert server.get("/history").keys() == history


def test_a_prompt_that_is_refused_ends_the_soak(server):
    standin_files.provide(server.base, soak.workflow(SIZE, STEPS, None))
    with pytest.raises(PromptError, match="crop_factor"):
        list(soak.ask(server, SIZE, STEPS, [1e9], ahead=2))
