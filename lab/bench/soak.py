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
import math
import statistics
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil

from ... import environment
from ...demo import main as demo
from ...demo.server import ComfyServer, PromptError
from .trend import Trend, trend, warm_up

ROOT = environment.ROOT
PAGE = ROOT / "docs" / "results" / "soak.md"
PROMPTS = 200
"""With fewer no page is written unless one is named: a try shall not replace what a whole run showed."""
CROPS = (1.6, 2.0, 2.6)
SHARED = {
    "CheckpointLoaderSimple",
    "LoadImage",
    "OmniPortraitFaceReference",
    "OmniPortraitPivotEncoderLoader",
    "OmniPortraitPivotConditioning",
    "CLIPTextEncode",
    "EmptyLatentImage",
}
KSAMPLER = "model seed steps cfg sampler_name scheduler positive negative latent_image denoise".split()
MIB = 2**20


@dataclass(frozen=True)
class Asked:
    """One prompt. name: plain, or guided and its crop. digest: of the latent's bits. start, end: seconds on the
    server's clock. rss, device: bytes at its end."""

    name: str
    digest: str
    start: float
    end: float
    rss: int
    device: int

    @property
    def kind(self) -> str:
        return self.name.split(",")[0]

    @property
    def seconds(self) -> float:
        return self.end - self.start


# What is asked


def workflow(size: int, steps: int, crop: float | None) -> dict:
    """The demo's workflow in API format, cut to its latent; crop None is plain KSampler on the same conditioning."""
    prompt = json.loads(demo.WORKFLOW.read_text(encoding="utf-8"))
    (sampling,) = (key for key, node in prompt.items() if node["class_type"] == "OmniPortraitRBGuidanceKSampler")
    inputs = prompt[sampling]["inputs"] | {"steps": steps}
    prompt = {key: node for key, node in prompt.items() if node["class_type"] in SHARED}
    demo.node(prompt, "EmptyLatentImage").update(width=size, height=size)
    demo.node(prompt, "OmniPortraitFaceReference")["crop_factor"] = crop or CROPS[0]
    prompt["sampler"] = {"class_type": "OmniPortraitRBGuidanceKSampler", "inputs": inputs}
    if crop is None:
        prompt["sampler"] = {"class_type": "KSampler", "inputs": {name: inputs[name] for name in KSAMPLER}}
    prompt["save"] = {"class_type": "SaveLatent", "inputs": {"samples": ["sampler", 0], "filename_prefix": "soak"}}
    return prompt


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


# What came of it


def trends(asked: Sequence[Asked]) -> dict[str, Trend]:
    """The resident set's and, where there is a device, its memory's."""
    names = [each.name for each in asked]
    made = {"resident set": trend(names, [each.rss / MIB for each in asked])}
    if any(each.device for each in asked):
        made["device memory"] = trend(names, [each.device / MIB for each in asked])
    return made


def changed(asked: Sequence[Asked]) -> list[str]:
    """Names whose pictures are not all the same, bit for bit."""
    return sorted({each.name for each in asked if len({a.digest for a in asked if a.name == each.name}) > 1})


def unguided(asked: Sequence[Asked]) -> list[str]:
    """Names of guided prompts that gave a plain one's picture: nothing would be tried then."""
    plain = {each.digest for each in asked if each.kind == "plain"}
    return sorted({each.name for each in asked if each.kind != "plain" and each.digest in plain})


def compared(asked: Sequence[Asked]) -> dict[str, tuple[int, int]]:
    """By kind, how many pictures were compared with the first of their name, and how many of these differed."""
    first: dict[str, Asked] = {}
    counts = {each.kind: (0, 0) for each in asked}
    for each in asked:
        if each is not first.setdefault(each.name, each):
            count, differed = counts[each.kind]
            counts[each.kind] = count + 1, differed + (each.digest != first[each.name].digest)
    return counts


def faults(asked: Sequence[Asked], allowed: float, allowed_slope: float) -> list[str]:
    """What is not well, in words; empty if memory was shown to be flat and no picture changed."""
    found = [f"the pictures changed: {name}" for name in changed(asked)]
    found += [f"the picture of a plain prompt: {name}" for name in unguided(asked)]
    for name, memory in trends(asked).items():
        interval = f"{memory.low:+.2f} to {memory.high:+.2f} MiB per 100 prompts, {allowed_slope:g} allowed"
        if memory.growth > allowed:
            found.append(f"{name}: {memory.growth:+.1f} MiB grown, {allowed:g} allowed")
        if memory.low > allowed_slope:
            found.append(f"{name}: a slope of {interval}")
        elif not memory.high <= allowed_slope:
            found.append(f"{name}: too few prompts, or too much noise, to judge the slope: {interval}")
    return found


# What is told


def report(asked: Sequence[Asked], wrong: Sequence[str]) -> list[str]:
    """The numbers and the verdict, in Markdown that reads well on a terminal, too."""
    rows = {
        f"start: median of prompts {warm_up(len(asked)) + 1} to {2 * warm_up(len(asked))}, MiB": "{0.start:.1f}",
        f"end: median of the last {warm_up(len(asked))}, MiB": "{0.end:.1f}",
        "growth, MiB": "{0.growth:+.1f}",
        "growth, MiB a prompt": "{1:+.4f}",
        "slope (Theil–Sen), MiB per 100 prompts, 95% interval": "{0.slope:+.2f} [{0.low:+.2f}, {0.high:+.2f}]",
        "slope (least squares), MiB per 100 prompts, ± standard error": "{0.line:+.2f} ± {0.error:.2f}",
    }
    memories = trends(asked)
    apart = max(len(asked) - 2 * warm_up(len(asked)), 1)  # prompts from the middle of one fifth to that of the other
    lines = [f"| after the warm-up | {' | '.join(memories)} |", "|---" * (1 + len(memories)) + "|"]
    for title, form in rows.items():
        cells = (form.format(memory, memory.growth / apart) for memory in memories.values())
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", "| pictures | compared bit for bit with the first | differed |", "|---|---|---|"]
    lines += [f"| {kind} | {count} | {differed} |" for kind, (count, differed) in compared(asked).items()]
    return [*lines, "", f"**NOT shown to be flat**: {'; '.join(wrong)}." if wrong else "**Flat.**"]


def page(asked: Sequence[Asked], where: str, options: argparse.Namespace, image: str) -> str:
    """docs/results/soak.md."""
    seconds = {kind: statistics.median(a.seconds for a in asked if a.kind == kind) for kind in compared(asked)}
    pause = statistics.median([b.start - a.end for a, b in zip(asked, asked[1:], strict=False)] or [math.nan])
    lines = [
        "# A server that is asked again and again",
        "",
        "Made by `python run.py bench soak`; do not edit.",
        "",
        f"{where}. {len(asked)} prompts of the demo's workflow at {options.size}×{options.size} with {options.steps} "
        "steps, asked of one ComfyUI process: a plain KSampler and RB-Guidance by turns, with the same words and seed. "
        f"The guided ones take the crops {', '.join(map(str, CROPS))} of the face in turn, one more than the "
        "reference cache holds, so that features are made, dropped and made again. "
        f"{options.ahead} prompts are queued behind the one that runs; from the end of one to the start of the next it "
        f"took {1000 * pause:.0f} ms (median). {asked[-1].end - asked[0].start:.0f} s in all; by medians "
        f"{', '.join(f'{value:.2f} s a {kind} prompt' for kind, value in seconds.items())}.",
        "",
        f"![Memory over the prompts]({image})",
        "",
        "Memory is the server's, read as soon as a prompt's end is told. The first fifth of the prompts warms up and "
        "is left out. The slopes compare each prompt with those of its own kind (plain, or guided with the same crop); "
        "the black line is Theil and Sen's. Flat is: at most "
        f"{options.allowed:g} MiB grown, the upper end of the Theil–Sen interval at most {options.allowed_slope:g} MiB "
        "per 100 prompts, no picture other than the first of its kind, and no guided one like a plain one.",
        "",
        *report(asked, faults(asked, options.allowed, options.allowed_slope)),
    ]
    return "\n".join(lines) + "\n"


def plot(asked: Sequence[Asked], file: Path) -> None:
    """Memory over the prompts, a panel each; the warm-up shaded, the judged slope as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    memories, warm = trends(asked), warm_up(len(asked))
    figure = Figure(figsize=(7.0, 2.7 * len(memories)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(memories), 1, squeeze=False)[:, 0]
    for panel, (name, memory) in zip(panels, memories.items(), strict=True):
        values = [(each.rss if name == "resident set" else each.device) / MIB for each in asked]
        for kind in compared(asked):
            numbers = [number for number, each in enumerate(asked, 1) if each.kind == kind]
            panel.plot(numbers, [values[number - 1] for number in numbers], ".", label=kind)
        ends, middle = np.array([warm + 1, len(asked)]), statistics.median(values[warm:])
        panel.plot(ends, middle + memory.slope / 100 * (ends - ends.mean()), "k-", linewidth=1)
        panel.axvspan(1, warm + 0.5, color="0.9")
        panel.set(xlabel="prompt", ylabel=f"{name}, MiB")
        panel.legend(fontsize=8, loc="lower right")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


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
                options.results.parent.mkdir(parents=True, exist_ok=True)
                with options.results.open("a") as file:
                    file.write(json.dumps(asdict(each)) + "\n")
            if len(asked) % 10 == 0:
                print(f"{len(asked)}/{options.prompts}: resident set {each.rss / MIB:.0f} MiB", flush=True)
    wrong = faults(asked, options.allowed, options.allowed_slope)
    print("\n".join([where, *report(asked, wrong)]))
    publish(asked, where, options)
    return 1 if wrong else 0
