"""Many prompts in a row on a real server, guided and plain by turns: memory stays flat and plain pictures never drift.

    python run.py bench soak                         # 200 prompts of the demo at 128 pixels: minutes on one core
    python run.py bench soak --prompts 1000 --size 256 --steps 20
    python run.py bench soak --prompts 24 --page output/soak.md     # a try; the page would otherwise need all 200
    python run.py bench soak --results output/soak.jsonl     # one line a prompt, for a plot of one's own

The server is a ComfyUI process of its own with the demo's model, asked over HTTP as the web page asks. Some prompts
(--ahead) are always queued behind the one that runs, so that guided and plain ones follow each other without a pause.
Guided prompts change the face among three crops, one more than the reference cache holds, so features are made, dropped
and made again. Every plain picture has to be the first one bit for bit, and so has every guided one of the same crop,
which must not be the plain one.

Memory is the server's resident set and, on a GPU, what the device has in use, read as soon as a prompt's end is told,
while the next begins. Two things are judged, after a fifth of the prompts for warming up:

* growth, the median of the last fifth over that of the first fifth after the warm-up: at most --allowed MiB, for what
  comes in steps;
* slope, Theil and Sen's, the median over all pairs of prompts of the same kind, since the kinds differ in what is in
  use at their end: the upper end of its 95% interval at most --allowed-slope MiB per 100 prompts, for what comes a
  little at a time. The default is half of a leak of 0.1 MiB a prompt. In two runs of 200 prompts half of all readings
  were within 0.1 MiB of their kind's median and one in ten was 10 to 29 MiB below it. That noise, redrawn at random,
  moves the least-squares slope, which the page tells too, by 1.2 (standard deviation), and this one by less than 0.1.
  A node that really kept 0.1 MiB a prompt was found at 9.0 to 13.9. Where the interval holds the allowed slope,
  nothing was shown, and that is no pass.

Ends with status 1 if either is more or a picture changes. Writes docs/results/soak.md after 200 prompts or more, or
the page that --page names.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import psutil

from ... import environment
from ...demo import main as demo
from ...demo.prompt import node
from ...demo.sampling import WORKFLOW
from ...demo.server import ComfyServer, PromptError
from .kept import keep
from .soak_report import CROPS, MIB, Asked, faults, page, plot, report

ROOT = environment.ROOT
PAGE = ROOT / "docs" / "results" / "soak.md"
PROMPTS = 200
"""With fewer no page is written unless one is named: a try shall not replace what a whole run showed."""
KSAMPLER = "model seed steps cfg sampler_name scheduler positive negative latent_image denoise".split()

# What is asked


def workflow(size: int, steps: int, crop: float | None) -> dict:
    """The demo's RB-Guidance in API format, on the bare checkpoint and cut to its latent; crop None is plain KSampler
    on the same conditioning."""
    prompt = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    inputs = node(prompt, "OmniPortraitRBGuidanceKSampler") | {"steps": steps}
    (checkpoint,) = (key for key, each in prompt.items() if each["class_type"] == "CheckpointLoaderSimple")
    inputs["model"] = [checkpoint, 0]
    prompt = {key: prompt[key] for key in behind(prompt, inputs)}
    node(prompt, "EmptyLatentImage").update(width=size, height=size)
    node(prompt, "OmniPortraitFaceReference")["crop_factor"] = crop or CROPS[0]
    prompt["sampler"] = {"class_type": "OmniPortraitRBGuidanceKSampler", "inputs": inputs}
    if crop is None:
        prompt["sampler"] = {"class_type": "KSampler", "inputs": {name: inputs[name] for name in KSAMPLER}}
    prompt["save"] = {"class_type": "SaveLatent", "inputs": {"samples": ["sampler", 0], "filename_prefix": "soak"}}
    return prompt


def behind(prompt: dict, inputs: dict) -> set[str]:
    """The nodes that these inputs come from, and those that theirs come from."""
    near = {value[0] for value in inputs.values() if isinstance(value, list)}
    return near.union(*(behind(prompt, prompt[key]["inputs"]) for key in near))


def turn(number: int) -> float | None:
    """Plain and guided by turns; the crops go round."""
    return None if number % 2 == 0 else CROPS[number // 2 % len(CROPS)]


# Asking


def ask(server: ComfyServer, size: int, steps: int, crops: Sequence[float | None], ahead: int) -> Iterator[Asked]:
    """One prompt after the other, `ahead` of them queued behind the one that runs."""
    waiting: deque[tuple[float | None, str]] = deque()
    with server.listening() as events:
        for crop in crops:
            waiting.append((crop, submit(server, workflow(size, steps, crop))))
            if len(waiting) > ahead:
                yield answer(server, events, *waiting.popleft())
        while waiting:
            yield answer(server, events, *waiting.popleft())


def submit(server: ComfyServer, prompt: dict) -> str:
    """Queue a prompt: its id. PromptError if a part of it does not validate; ComfyUI would run the rest."""
    told = json.loads(server.request("/prompt", {"prompt": prompt, "client_id": server.client_id}))
    if told.get("node_errors"):
        raise PromptError(json.dumps(told["node_errors"]))
    return told["prompt_id"]


def wait(server: ComfyServer, events, prompt_id: str) -> None:
    """Until that prompt has ended. PromptError with the failing node's sentence, or if the server dies."""
    for _ in server.follow(events, {}, prompt_id):
        pass


def answer(server: ComfyServer, events, crop: float | None, prompt_id: str) -> Asked:
    """Wait for a prompt's latent and remove its file. RuntimeError where ComfyUI answered from its cache."""
    wait(server, events, prompt_id)
    rss = psutil.Process(server.process.pid).memory_info().rss  # at once: the next prompt begins
    devices = server.get("/system_stats")["devices"]
    device = sum(each["vram_total"] - each["vram_free"] for each in devices if each["type"] != "cpu")
    entry = server.history(prompt_id)
    server.request("/history", {"delete": [prompt_id]})  # ComfyUI keeps 10000, some KiB each, which is no leak of ours
    if "sampler" in cached_nodes(entry):
        raise RuntimeError("ComfyUI answered from its cache, so nothing was tried: start it with --cache-classic.")
    saved = entry["outputs"]["save"]["latents"][0]
    file = server.base / "output" / saved["subfolder"] / saved["filename"]
    digest = hashlib.sha256(latent_bytes(file)).hexdigest()
    file.unlink()
    times = (timestamp(entry, event) for event in ("execution_start", "execution_success"))
    return Asked("plain" if crop is None else f"guided, crop {crop}", digest, *times, rss, device)


def timestamp(entry: dict, event: str) -> float:
    """When a finished prompt had that event, in seconds on the server's clock."""
    return next(data["timestamp"] for kind, data in entry["status"]["messages"] if kind == event) / 1000


def cached_nodes(entry: dict) -> set[str]:
    """Nodes of a finished prompt that ComfyUI did not run because their inputs were the last ones."""
    messages = entry["status"]["messages"]
    return {node for kind, data in messages if kind == "execution_cached" for node in data["nodes"]}


def latent_bytes(file: Path) -> bytes:
    """The samples alone: the file's header holds the prompt and differs."""
    import safetensors.numpy

    return safetensors.numpy.load_file(file)["latent_tensor"].tobytes()


def start_server(base: Path) -> ComfyServer:
    """The demo's server on a base folder of its own; use it as a context manager."""
    comfyui = environment.need_comfyui()
    python = demo.python_for(comfyui)
    demo.link_models(base)
    (base / "input").mkdir(parents=True, exist_ok=True)
    demo.save_photo(demo.HELD_OUT, base / "input" / demo.REFERENCE)
    return ComfyServer(comfyui, python, base, demo.CUSTOM_NODES, arguments=demo.device_arguments(python))


# The command


def surroundings(server: ComfyServer) -> str:
    """What runs: versions and devices, in the server's own words."""
    told = server.get("/system_stats")
    system, devices = told["system"], ", ".join(each["name"] for each in told["devices"])
    return f"ComfyUI {system['comfyui_version']}, PyTorch {system['pytorch_version']}, {devices}"


def options_of(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py bench soak", allow_abbrev=False)
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--ahead", type=int, default=2, metavar="N", help="prompts queued behind the one that runs")
    parser.add_argument("--allowed", type=float, default=32.0, metavar="MIB", help="growth")
    parser.add_argument("--allowed-slope", type=float, default=5.0, metavar="MIB", help="per 100 prompts")
    parser.add_argument("--results", type=Path, metavar="FILE", help="append one JSON line a prompt")
    page_help = f"default: docs/results/soak.md after {PROMPTS} or more"
    parser.add_argument("--page", type=Path, metavar="FILE", help=page_help)
    return parser.parse_args(words)


def publish(asked: Sequence[Asked], where: str, options: argparse.Namespace) -> None:
    """Write the page and its picture, if there is to be one, and say so."""
    file = options.page or (PAGE if len(asked) >= PROMPTS else None)
    if file is None:
        print(f"no page: it takes {PROMPTS} prompts, or a name by --page")
        return
    image = file.parent / "images" / f"{file.stem}.png"
    plot(asked, image)
    file.write_text(page(asked, where, options, f"images/{image.name}"), encoding="utf-8")
    print(f"wrote {file} and {image}")


def main(words: list[str]) -> int:
    options = options_of(words)
    asked: list[Asked] = []
    with tempfile.TemporaryDirectory() as folder, start_server(Path(folder)) as server:
        where = surroundings(server)
        for each in ask(server, options.size, options.steps, [turn(n) for n in range(options.prompts)], options.ahead):
            asked.append(each)
            if options.results:
                keep(options.results, asdict(each))
            if len(asked) % 10 == 0:
                print(f"{len(asked)}/{options.prompts}: resident set {each.rss / MIB:.0f} MiB", flush=True)
    wrong = faults(asked, options.allowed, options.allowed_slope)
    print("\n".join([where, *report(asked, wrong)]))
    publish(asked, where, options)
    return 1 if wrong else 0
