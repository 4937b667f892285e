"""`run.py demo` and `run.py serve`, inside the environment: start ComfyUI, and for the demo make one portrait."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from ..environment import python_of_comfyui
from .sampling import WORKFLOW
from .server import ComfyServer, Progress, PromptError, link

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / ".omniportrait" / "base"
CUSTOM_NODES = {"comfyui-omniportrait": ROOT, "omniportrait-demo": ROOT / "demo"}
DEMO_CHECKPOINT = ROOT / "demo" / "weights" / "omniportrait_demo.safetensors"
DEMO_ENCODER = ROOT / "demo" / "weights" / "omniportrait_demo_pivot.safetensors"
CHOSEN = "chosen"
"""Subfolder for the files that the command line names, so that no link takes the place of a file put there by hand."""
REFERENCE = "omniportrait_reference.png"
"""What the demo workflow reads: a rendered person whom the demo model has never seen, or the user's photograph."""
HELD_OUT = ROOT / "demo" / "reference.png"
PHOTO = "omniportrait_photo.png"
SECOND_PHOTO = "omniportrait_photo_2.png"
MODEL_FOLDERS = (
    "checkpoints clip clip_vision configs controlnet diffusion_models embeddings face_embedders facexlib ic_portrait "
    "ipadapter loras photomaker pivot_encoders text_encoders unet upscale_models vae vae_approx"
).split()


@dataclass(frozen=True)
class Choices:
    """What the command line says, checked. None leaves the workflow's own value."""

    checkpoint: Path | None
    pivot_encoder: Path | None
    prompt: str | None
    subject: str | None
    seed: int | None
    steps: int | None
    size: tuple[int, int] | None


# The server's folder


def device_arguments(python: Path) -> tuple[str, ...]:
    """`--cpu` where that Python's torch sees no GPU."""
    probe = (
        "import torch, sys; x = getattr(torch, 'xpu', None); "
        "gpu = torch.cuda.is_available() or torch.backends.mps.is_available() or (x and x.is_available()); "
        "sys.exit(0 if gpu else 3)"
    )
    return ("--cpu",) if subprocess.run([python, "-c", probe], stderr=subprocess.DEVNULL).returncode == 3 else ()


def said_device(python: Path) -> tuple[str, ...]:
    """`device_arguments`, and a line that says which device it is."""
    arguments = device_arguments(python)
    print("Running on the CPU: this Python's torch sees no GPU." if arguments else "Running on the GPU.", flush=True)
    return arguments


def python_for(comfyui: Path) -> Path:
    """The Python that runs this ComfyUI: its own, else the one that runs this, whose packages are those of ComfyUI
    0.3.75."""
    return python_of_comfyui(comfyui) or Path(sys.executable)


def prepare_base(photo: Path | None, need_model: bool) -> None:
    """Fill the private folder with the picture that the demo reads, the demo model and its pivot encoder."""
    (BASE / "input").mkdir(parents=True, exist_ok=True)
    save_photo(photo or HELD_OUT, BASE / "input" / REFERENCE)
    if need_model:
        link_models(BASE)


def link_models(base: Path) -> None:
    """Put the demo model and its pivot encoder into the `models` of a server's folder."""
    for file, folder in ((DEMO_CHECKPOINT, "checkpoints"), (DEMO_ENCODER, "pivot_encoders")):
        link(file, base / "models" / folder / file.name)


def save_photo(photo: Path, target: Path) -> None:
    """A picture as PNG, upright, in 8 bits and without transparency. SystemExit with one sentence if it is none."""
    from ..models.faces.file import open_picture

    try:
        picture, note = open_picture(photo)
    except Exception as error:  # whatever Pillow's readers come upon
        raise SystemExit(f"{photo} cannot be read as a picture ({error}); give a JPEG, PNG or WebP file.") from None
    if note:
        print(f"{photo}: {note}.", flush=True)
    picture.save(target)


def first_photo() -> Path:
    """A real photograph (scikit-image's astronaut, public domain), for the workflows of SD1.5 and SDXL."""
    import skimage

    return Path(skimage.__file__).parent / "data" / "astronaut.png"


def second_photo() -> Path:
    """A photograph of somebody else, for the workflow with two people (matplotlib's, public domain)."""
    import matplotlib

    return Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")


def model_paths(comfyui: Path) -> tuple[str, ...]:
    """The argument that shows the models of the user's own ComfyUI, if they are in it."""
    models = comfyui / "models"
    if not models.is_dir():
        return ()
    file = BASE / "model_paths.yaml"
    folders = "".join(f"    {name}: {name}\n" for name in MODEL_FOLDERS)
    file.write_text(f"own_comfyui:\n    base_path: {json.dumps(str(models))}\n{folders}")
    return "--extra-model-paths-config", str(file)


# The prompt


def node(prompt: dict, kind: str) -> dict:
    """Inputs of the only node of that class."""
    (found,) = nodes(prompt, kind)
    return found


def nodes(prompt: dict, *kinds: str) -> list[dict]:
    """Inputs of all nodes of these classes."""
    return [entry["inputs"] for entry in prompt.values() if entry["class_type"] in kinds]


def build_prompt(choices: Choices) -> dict:
    """The demo workflow with the user's choices in it."""
    prompt = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    pivots = nodes(prompt, "OmniPortraitPivotConditioning")  # of the plain word, and with the encoder
    samplers = nodes(prompt, "KSampler", "OmniPortraitRBGuidanceKSampler")
    latent = node(prompt, "EmptyLatentImage")
    if choices.checkpoint:
        node(prompt, "CheckpointLoaderSimple")["ckpt_name"] = os.path.join(CHOSEN, choices.checkpoint.name)
        guided = node(prompt, "OmniPortraitRBGuidanceKSampler")
        guided.update(guidance_of_the_nodes(guided))
    for pivot in pivots:
        if choices.prompt:
            pivot["text"] = choices.prompt
        if choices.prompt or choices.subject:
            pivot["subject"] = choices.subject or guess_subject(pivot["text"])
    for name in ("seed", "steps"):
        if getattr(choices, name) is not None:
            for sampler in samplers:  # equal in all, or the comparison says nothing
                sampler[name] = getattr(choices, name)
    size = choices.size or (default_size(choices.checkpoint) if choices.checkpoint else None)
    if size:
        latent["width"], latent["height"] = size
    if choices.pivot_encoder:
        name = os.path.join(CHOSEN, choices.pivot_encoder.name)
        node(prompt, "OmniPortraitPivotEncoderLoader")["pivot_encoder_name"] = name
    elif choices.checkpoint:  # the demo's encoder is of the demo model's family
        (loader,) = {pivot.pop("pivot_encoder")[0] for pivot in pivots if "pivot_encoder" in pivot}
        del prompt[loader]
    return prompt


def guidance_of_the_nodes(inputs: dict) -> dict[str, object]:
    """The nodes' own values of the guidance's inputs: what the demo's workflow has for the embedded model says nothing
    of another."""
    from ..guidance.omniportrait.settings import Settings

    own = asdict(Settings())
    return {name: own[name] for name in inputs if name in own} | {"feature_block": own["block"]}


def guess_subject(text: str) -> str:
    """The first word of the prompt that names a person. SystemExit that asks for --subject if there is none."""
    from ..sampling.words import find_noun

    if word := find_noun(text):
        return word
    raise SystemExit(f'No person was found in the prompt "{text}": say which of its words it is by --subject WORD.')


def default_size(checkpoint: Path) -> tuple[int, int]:
    """1024 for SDXL, known by its second text encoder in the file's header, else 512."""
    if checkpoint.suffix == ".safetensors":
        with checkpoint.open("rb") as file:
            length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
            header = file.read(length) if length < 100_000_000 else b""
        if b'"conditioner.embedders.1.' in header:
            return 1024, 1024
    return 512, 512


# The commands


def demo(options: argparse.Namespace, comfyui: Path) -> None:
    choices = check(options)
    prompt = build_prompt(choices)
    python = python_for(comfyui)
    prepare_base(existing(options.photo, "--photo"), need_model=choices.checkpoint is None)
    for file, folder in ((choices.checkpoint, "checkpoints"), (choices.pivot_encoder, "pivot_encoders")):
        if file:
            link(file, BASE / "models" / folder / CHOSEN / file.name)
    print(f"Starting ComfyUI from {comfyui}", flush=True)
    print("The portrait is sampled four times from one noise, each with one thing more, to be compared.", flush=True)
    arguments = ("--disable-metadata", *said_device(python), *model_paths(comfyui))
    with ComfyServer(comfyui, python, BASE, CUSTOM_NODES, arguments=arguments) as server:
        show = Bar()
        outputs = server.run(prompt, show)
        show.end()
        folder = save_outputs(server, prompt, outputs, Path(options.output))
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    print(f"Saved in {folder}: {names}", flush=True)
    print(
        "Look at comparison.png first: photograph | plain word | with the pivot | and Reference Attention | and "
        "RB-Guidance.",
        flush=True,
    )


def save_outputs(server: ComfyServer, prompt: dict, outputs: dict, output: Path) -> Path:
    """Every saved picture under a new numbered folder, named by its node's prefix. What nodes merely show is left."""
    number = 1
    while (output / f"portrait-{number:03d}").exists():
        number += 1
    folder = output / f"portrait-{number:03d}"
    folder.mkdir(parents=True)
    for node_id, values in outputs.items():
        name = prompt[node_id]["inputs"].get("filename_prefix", node_id).rsplit("/", 1)[-1]
        saved = [image for image in values.get("images", []) if image["type"] == "output"]
        for index, image in enumerate(saved):
            suffix = f"_{index + 1}" if index else ""
            (folder / f"{name}{suffix}.png").write_bytes(server.fetch(image))
    return folder.resolve()


def serve(options: argparse.Namespace, comfyui: Path) -> None:
    python = python_for(comfyui)
    prepare_base(None, need_model=True)
    for file, name in ((first_photo(), PHOTO), (second_photo(), SECOND_PHOTO)):  # the other workflows' pictures
        save_photo(file, BASE / "input" / name)
    shelf = BASE / "user" / "default" / "workflows" / "OmniPortrait"
    shelf.mkdir(parents=True, exist_ok=True)
    for workflow in (ROOT / "workflows").glob("*.json"):
        saved = shelf / workflow.name
        if not saved.exists() or saved.stat().st_mtime < workflow.stat().st_mtime:  # the user's own edits stay
            shutil.copyfile(workflow, saved)
    arguments = (*said_device(python), *model_paths(comfyui))
    where = {"port": options.port, "listen": options.listen}
    with ComfyServer(comfyui, python, BASE, CUSTOM_NODES, arguments=arguments, echo=True, **where) as server:
        print(f"\nComfyUI with OmniPortrait: {server.url}", flush=True)
        print("Its workflows are in the Workflows panel. Ctrl-C ends it.", flush=True)
        server.process.wait()
    raise SystemExit(f"ComfyUI ended by itself with code {server.process.returncode}.")


def check(options: argparse.Namespace) -> Choices:
    """The command line's values, or SystemExit with one sentence."""
    size = None
    if options.size:
        match = re.fullmatch(r"(\d+)[xX](\d+)", options.size)
        size = (int(match[1]), int(match[2])) if match else (0, 0)
        if min(size) < 64 or size[0] % 8 or size[1] % 8:
            raise SystemExit(f"--size {options.size}: write WIDTHxHEIGHT in multiples of 8, at least 64x64.")
    if options.steps is not None and options.steps < 1:
        raise SystemExit(f"--steps {options.steps}: give at least 1.")
    return Choices(
        existing(options.checkpoint, "--checkpoint"),
        existing(options.pivot_encoder, "--pivot-encoder"),
        options.prompt,
        options.subject,
        options.seed,
        options.steps,
        size,
    )


def existing(path: str | None, option: str) -> Path | None:
    if path is None:
        return None
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise SystemExit(f"{option} {path}: there is no such file.")
    return file


class Bar:
    """A progress bar on a terminal; in a log file a line for every node."""

    def __init__(self) -> None:
        self.last = ""

    def __call__(self, progress: Progress) -> None:
        if sys.stdout.isatty():
            filled = round(30 * progress.share)
            text = f"[{'#' * filled}{'.' * (30 - filled)}] {100 * progress.share:3.0f}%  {progress.text}"
            width = (shutil.get_terminal_size().columns or 80) - 1
            sys.stdout.write("\r" + text[:width].ljust(width))
        else:
            name = re.sub(r" \d+/\d+$", "", progress.text)
            if name != self.last:
                sys.stdout.write(f"{100 * progress.share:3.0f}%  {name}\n")
            self.last = name
        sys.stdout.flush()

    def end(self) -> None:
        if sys.stdout.isatty():
            sys.stdout.write("\n")


def main(options: argparse.Namespace, comfyui: Path) -> int:
    """The exit status: 0, 1 with one sentence on stderr, 130 after Ctrl-C. The server is stopped in every case."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        {"demo": demo, "serve": serve}[options.command](options, comfyui)
    except PromptError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    return 0
