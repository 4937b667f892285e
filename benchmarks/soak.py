"""Many prompts in a row on a real server, guided and plain by turns: memory stays flat and plain pictures never drift.

    python run.py bench soak                         # 200 prompts of the demo at 128 pixels: minutes on two cores
    python run.py bench soak --prompts 1000 --size 256 --steps 20
    python run.py bench soak --results output/soak.jsonl     # one line a prompt, for a plot

The server is a ComfyUI process of its own with the demo's model, asked over HTTP as the web page asks. Guided prompts
change the face among three crops, one more than the reference cache holds, so features are made, dropped and made
again. Every plain picture has to be the first one bit for bit, and so has every guided one of the same crop. Memory is
the server's resident set and, on a GPU, what the device has in use; after a fifth of the prompts for warming up it may
grow by --allowed megabytes (the median of the last fifth over that of the first fifth after the warm-up). Ends with
status 1 if it grows more or a picture changes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from omniportrait import run
from omniportrait.demo import main as demo
from omniportrait.demo.server import ComfyServer

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
    """One prompt. name: plain, or guided and its crop. digest: of the latent's bits. rss, device: bytes after it."""

    name: str
    digest: str
    seconds: float
    rss: int
    device: int


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


def ask(server: ComfyServer, size: int, steps: int, crop: float | None) -> Asked:
    """Queue one prompt, wait for its latent, remove the file. RuntimeError where ComfyUI answered from its cache."""
    start = time.perf_counter()
    prompt_id, outputs = submit(server, workflow(size, steps, crop))
    if "sampler" in cached_nodes(server, prompt_id):
        raise RuntimeError("ComfyUI answered from its cache, so nothing was tried: start it with --cache-classic.")
    saved = outputs["save"]["latents"][0]
    file = server.base / "output" / saved["subfolder"] / saved["filename"]
    digest = hashlib.sha256(latent_bytes(file)).hexdigest()
    file.unlink()
    seconds = time.perf_counter() - start
    rss = psutil.Process(server.process.pid).memory_info().rss
    devices = server.get("/system_stats")["devices"]
    device = sum(each["vram_total"] - each["vram_free"] for each in devices if each["type"] != "cpu")
    return Asked("plain" if crop is None else f"guided, crop {crop}", digest, seconds, rss, device)


def submit(server: ComfyServer, prompt: dict) -> tuple[str, dict]:
    """Run a prompt to its end: its id and its outputs."""
    before = set(server.get("/history"))
    outputs = server.run(prompt)
    (prompt_id,) = set(server.get("/history")) - before
    return prompt_id, outputs


def cached_nodes(server: ComfyServer, prompt_id: str) -> set[str]:
    """Nodes of a finished prompt that ComfyUI did not run because their inputs were the last ones."""
    messages = server.history(prompt_id)["status"]["messages"]
    return {node for kind, data in messages if kind == "execution_cached" for node in data["nodes"]}


def latent_bytes(file: Path) -> bytes:
    """The samples alone: the file's header holds the prompt and differs."""
    import safetensors.numpy

    return safetensors.numpy.load_file(file)["latent_tensor"].tobytes()


def growth(values: list[int]) -> float:
    """MiB from the first fifth after the warm-up (a fifth) to the last fifth, by medians."""
    fifth = max(len(values) // 5, 1)
    return (statistics.median(values[-fifth:]) - statistics.median(values[fifth : 2 * fifth])) / MIB


def changed(asked: list[Asked]) -> list[str]:
    """Names whose pictures are not all the same, bit for bit."""
    return sorted({each.name for each in asked if len({a.digest for a in asked if a.name == each.name}) > 1})


def report(asked: list[Asked], allowed: float) -> bool:
    """Print the verdict; whether all is well."""
    times = {kind: [a.seconds for a in asked if a.name.startswith(kind)] for kind in ("plain", "guided")}
    for kind, seconds in times.items():
        if seconds:
            print(f"{len(seconds)} {kind} prompts, median {statistics.median(seconds):.2f} s")
    rss, device = growth([a.rss for a in asked]), growth([a.device for a in asked])
    print(f"resident set: {asked[0].rss / MIB:.0f} MiB first, {asked[-1].rss / MIB:.0f} MiB last, {rss:+.1f} MiB grown")
    if any(a.device for a in asked):
        print(f"device memory in use: {asked[-1].device / MIB:.0f} MiB, {device:+.1f} MiB grown")
    drifted = changed(asked)
    print(f"pictures that changed: {', '.join(drifted) or 'none'}")
    well = not drifted and max(rss, device) <= allowed
    print("flat" if well else f"NOT FLAT (allowed {allowed:.0f} MiB)")
    return well


def start_server(base: Path) -> ComfyServer:
    """The demo's server on a base folder of its own; use it as a context manager."""
    comfyui = run.find_comfyui()
    if comfyui is None:
        raise SystemExit("There is no ComfyUI here: start this as `python run.py bench soak`.")
    python = demo.python_for(comfyui)
    demo.link_models(base)
    (base / "input").mkdir(parents=True, exist_ok=True)
    demo.save_photo(demo.HELD_OUT, base / "input" / demo.REFERENCE)
    return ComfyServer(comfyui, python, base, demo.CUSTOM_NODES, arguments=demo.device_arguments(python))


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py bench soak")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--allowed", type=float, default=32.0, metavar="MIB")
    parser.add_argument("--results", type=Path, metavar="FILE", help="append one JSON line a prompt")
    options = parser.parse_args()
    asked: list[Asked] = []
    with tempfile.TemporaryDirectory() as folder, start_server(Path(folder)) as server:
        for number in range(options.prompts):
            asked.append(ask(server, options.size, options.steps, turn(number)))
            if options.results:
                options.results.parent.mkdir(parents=True, exist_ok=True)
                with options.results.open("a") as file:
                    file.write(json.dumps(asdict(asked[-1])) + "\n")
            if (number + 1) % 10 == 0:
                print(f"{number + 1}/{options.prompts}: resident set {asked[-1].rss / MIB:.0f} MiB", flush=True)
    return 0 if report(asked, options.allowed) else 1


if __name__ == "__main__":
    sys.exit(main())
