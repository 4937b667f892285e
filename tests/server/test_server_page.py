"""ComfyUI's real page in headless Chromium: every workflow and blueprint opened, and prompts queued from there."""

from __future__ import annotations

import io
import json
import os
import shutil
import time

import numpy
import pytest
import standin_files
import told
from conftest import page_workflows, reduce_node
from omniportrait.demo.client import PromptError
from PIL import Image
from test_server_schema import NODES

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
MINUTES = 5

OPEN = """async workflow => {
    await window.app.loadGraphData(workflow);
    const known = window.LiteGraph.registered_node_types;
    return window.app.graph.nodes.filter(node => !known[node.type]).map(node => node.type);
}"""
"""The nodes that the page does not know. `has_errors` would say more on newer pages: which model files are missing."""
PROMPT = "async () => (await window.app.graphToPrompt()).output"
SET = """values => {
    for (const [id, name, value] of values) {
        const node = window.app.graph.nodes.find(node => String(node.id) === id);
        const slot = node.inputs.findIndex(input => input.widget?.name === name);
        const primitive = slot < 0 ? null : node.getInputNode(slot);  // its value goes before the widget's own
        (primitive?.widgets[0] ?? node.widgets.find(widget => widget.name === name)).value = value;
    }
}"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None and os.environ.get("CI") != "true":
        pytest.skip("no Chromium was found")
    assert executable, "Chromium is required under CI=true"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def open_page(browser, server):
    """Opens ComfyUI's page, ready, without the template browser that greets a first visit; each is a visitor of its
    own. frames: gets what the page is told over its socket."""
    contexts = []

    def opened(frames: list | None = None):
        server.request("/settings", {"Comfy.TutorialCompleted": True})
        contexts.append(browser.new_context(viewport={"width": 1600, "height": 1000}))
        page = contexts[-1].new_page()
        if frames is not None:
            page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(frame)))
        page.goto(server.url, wait_until="commit")  # the line below waits until it is ready
        page.wait_for_function("window.app && window.app.graph && window.app.vueAppReady !== false", timeout=120_000)
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def frames() -> list:
    """What the page is told over its socket."""
    return []


@pytest.fixture(scope="module")
def visitor(open_page, frames):
    return open_page(frames)


@pytest.fixture
def page(visitor):
    """The visitor's page as it was when it was opened: to open one takes seconds."""
    visitor.keyboard.press("Escape")  # whatever is open over the graph
    visitor.evaluate("async () => { await window.app.loadGraphData(); }")
    return visitor


def test_all_nodes_are_known_to_the_page(page):
    types = page.evaluate("() => Object.keys(window.LiteGraph.registered_node_types)")
    assert set(NODES) <= set(types)


def test_nodes_are_in_the_search(page):
    box = open_search(page)
    for title in NODES.values():
        box.fill(title)
        page.get_by_role("option").filter(has_text=title).first.wait_for(timeout=20_000)


def open_search(page):
    """The text box of the node search, opened as people do: by a double click on the empty canvas. Known by its role,
    since its words differ from page to page, and by having the cursor."""
    from playwright.sync_api import TimeoutError as NotYet

    box = page.locator("[role=combobox]:focus")
    for _ in range(10):  # the canvas takes clicks only some time after the page is there
        page.mouse.dblclick(1200, 850)
        try:
            box.wait_for(timeout=3000)
            return box
        except NotYet:
            continue
    raise AssertionError("a double click on the canvas did not open the node search")


def test_workflows_open_as_scripts_send_them(page):
    """Without an unknown node, and what the page would queue is the form for scripts, which is run elsewhere."""
    for path in page_workflows():
        assert page.evaluate(OPEN, json.loads(path.read_text(encoding="utf-8"))) == [], path.stem
        scripted = json.loads((path.parent / "api" / path.name).read_text(encoding="utf-8"))
        prompt = page.evaluate(PROMPT)
        for node in prompt.values():
            if node["class_type"] == "PreviewAny":  # the page sends the box that it shows the text in
                node["inputs"] = {"source": node["inputs"]["source"]}
        assert prompt == scripted, path.stem


BLUEPRINTS = {
    "First portrait (OmniPortrait)": {"prompt", "subject", "strength", "width", "height", "seed"},
    "Two people (OmniPortrait)": {"prompt", "first_subject", "second_subject", "width", "height", "seed"},
    "Detail of a picture (OmniPortrait)": {"prompt", "subject", "side", "denoise", "seed"},
}
"""What the node of each shows to be set."""


def test_blueprints_are_served_and_open(page, server, pinned):
    """As one node with its widgets, which the page takes apart into the nodes inside when it queues."""
    try:
        served = server.get("/global_subgraphs")
    except PromptError:
        if pinned:
            raise
        pytest.skip("this core serves no blueprints")
    told = {entry["name"]: key for key, entry in served.items()}
    for name, widgets in BLUEPRINTS.items():
        form = json.loads(server.get(f"/global_subgraphs/{told[name]}")["data"])
        page.evaluate("async form => await window.app.loadGraphData(form)", form)
        shown = page.evaluate("() => window.app.graph.nodes[0].widgets.map(widget => widget.name)")
        assert len(shown) == len(set(shown)) and widgets <= set(shown), (name, shown)
        inside = sorted(node["type"] for node in form["definitions"]["subgraphs"][0]["nodes"])
        assert sorted(node["class_type"] for node in page.evaluate(PROMPT).values()) == inside, name


def test_two_pages_get_what_is_theirs(page, frames, open_page, server, pinned):
    """Two visitors queue the same workflow with seeds of their own, by turns: each page is told of its own prompts
    only, shows their pictures, which are alike, and the first one's are what its prompt gives alone."""
    (path,) = (path for path in page_workflows() if path.stem == "omniportrait_demo")
    frames.clear()
    told_to: list[list] = [frames, []]
    pages = [page, open_page(told_to[1])]
    prompts = []
    for number, page in enumerate(pages):
        assert page.evaluate(OPEN, json.loads(path.read_text(encoding="utf-8"))) == []
        standin_files.provide(server.base, page.evaluate(PROMPT))
        own = [["7", "seed", 301 + number], ["9", "filename_prefix", f"visitor_{number}"]]
        smaller = [["6", "width", 128], ["6", "height", 128]]
        page.evaluate(SET, [*reductions(page.evaluate(PROMPT)), *smaller, *own])
        prompts.append(page.evaluate(PROMPT))
        assert prompts[number]["7"]["inputs"]["seed"] == 301 + number
    queued: list[list[str]] = [[], []]
    for number in (0, 1, 0, 1):
        queued[number].append(queue(pages[number]))
    portraits = []
    text = """() => {
        const sampler = window.app.graph.nodes.find(node => String(node.id) === "7");
        return sampler.widgets.find(each => each.name === "result")?.value;
    }"""
    for number, page in enumerate(pages):
        entries = [finished(server, prompt_id) for prompt_id in queued[number]]
        assert all(entry["status"]["status_str"] == "success" for entry in entries)
        messages = told_until_idle(page, told_to[number], queued[number][-1])
        told.assert_own(messages, queued[number], "7", prompts[number]["7"]["inputs"]["steps"], every=pinned)
        for prompt_id, entry in zip(queued[number], entries, strict=True):
            assert told.outputs_of(messages, prompt_id) == entry["outputs"]
        assert "calls guided" in page.evaluate(text) and page.evaluate(PROMPT) == prompts[number]
        (shown,) = page.evaluate("() => window.app.nodeOutputs")["9"]["images"]
        assert shown == entries[-1]["outputs"]["9"]["images"][0] and shown["filename"].startswith(f"visitor_{number}")
        portraits.append([pixels(server, entry["outputs"]["9"]["images"][0]) for entry in entries])
    (alone,) = server.run(prompts[0])["9"]["images"]  # the second one's ran last, so no cache answers
    assert all((picture == pixels(server, alone)).all() for picture in portraits[0])
    assert (portraits[1][0] == portraits[1][1]).all() and (portraits[0][0] != portraits[1][0]).any()


def pixels(server, image: dict) -> numpy.ndarray:
    return numpy.asarray(Image.open(io.BytesIO(server.fetch(image))))


def told_until_idle(page, frames: list, prompt_id: str) -> list[dict]:
    """What a page has been told when a prompt has ended and after it nothing is left to run."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        page.wait_for_timeout(50)  # in which Playwright hands the frames on
        messages = [json.loads(frame) for frame in frames if isinstance(frame, str)]  # previews are binary
        ended = [each["type"] == "execution_success" and each["data"]["prompt_id"] == prompt_id for each in messages]
        if True in ended and any(map(told.is_idle, messages[ended.index(True) :])):
            return messages
    raise AssertionError("the page was not told that its prompt has ended")


def queue(page) -> str:
    """Queue a page's workflow as its button does: the prompt's id."""
    with page.expect_response(is_queueing) as sent:
        page.evaluate("() => window.app.queuePrompt(0)")
    answer = sent.value.json()
    assert sent.value.ok and not answer.get("node_errors"), answer
    return answer["prompt_id"]


def is_queueing(answer) -> bool:
    return answer.url.endswith("/prompt") and answer.request.method == "POST"


def reductions(prompt: dict) -> list[list]:
    """Size and steps only: [node id, widget, value] of what the API tests reduce too."""
    changes = []
    for node_id, node in prompt.items():
        reduced = dict(node["inputs"])
        reduce_node(node["class_type"], reduced)
        changes += [[node_id, name, value] for name, value in reduced.items() if value != node["inputs"][name]]
    return changes


def finished(server, prompt_id: str) -> dict:
    """The history entry of a prompt once it has ended, well or badly."""
    deadline = time.monotonic() + 60 * MINUTES
    while time.monotonic() < deadline:
        history = server.get(f"/history/{prompt_id}")
        if prompt_id in history:
            return history[prompt_id]
        time.sleep(0.5)
    raise AssertionError(f"the prompt did not end within {MINUTES} minutes")
