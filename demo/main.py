"""`run.py demo` and `run.py serve`, inside the environment: start ComfyUI, and for the demo make one portrait."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from ..environment import python_of_comfyui
from .prompt import CHOSEN, build_ic_prompt, build_prompt, check, existing
from .server import ComfyServer, Progress, PromptError, link

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / ".omniportrait" / "base"
CUSTOM_NODES = {"comfyui-omniportrait": ROOT, "omniportrait-demo": ROOT / "demo"}
DEMO_CHECKPOINT = ROOT / "demo" / "weights" / "omniportrait_demo.safetensors"
DEMO_ENCODER = ROOT / "demo" / "weights" / "omniportrait_demo_pivot.safetensors"
DEMO_NETS = ROOT / "demo" / "weights" / "omniportrait_demo_ic.safetensors"
REFERENCE = "omniportrait_reference.png"
"""What the demo workflow reads: a rendered person whom the demo model has never seen, or the user's photograph."""
HELD_OUT = ROOT / "demo" / "reference.png"
STYLE = "omniportrait_style.png"
"""What `demo --ic` paints that person into: a picture of another one whom its models have never seen."""
STYLE_PICTURE = ROOT / "demo" / "style.png"
PHOTO = "omniportrait_photo.png"
SECOND_PHOTO = "omniportrait_photo_2.png"
TWO_PEOPLE = "omniportrait_two_people.png"
MODEL_FOLDERS = (
    "checkpoints clip clip_vision configs controlnet diffusion_models embeddings face_embedders facexlib ic_portrait "
    "ipadapter loras photomaker pivot_encoders text_encoders unet upscale_models vae vae_approx"
).split()


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


def prepare_base(photo: Path | None, need_model: bool, style: Path | None = None) -> None:
    """Fill the private folder with the pictures that the demo reads, the demo model, its pivot encoder and its nets."""
    (BASE / "input").mkdir(parents=True, exist_ok=True)
    save_photo(photo or HELD_OUT, BASE / "input" / REFERENCE)
    save_photo(style or STYLE_PICTURE, BASE / "input" / STYLE)
    if need_model:
        link_models(BASE)


def link_models(base: Path) -> None:
    """Put the demo model, its pivot encoder and its nets into the `models` of a server's folder."""
    for file, folder in (
        (DEMO_CHECKPOINT, "checkpoints"), (DEMO_ENCODER, "pivot_encoders"), (DEMO_NETS, "ic_portrait"),
    ):  # fmt: skip
        if file.is_file():  # no nets are part of the repository yet
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


def side_by_side(left: Path, right: Path, target: Path) -> None:
    """Two photographs as one."""
    from PIL import Image

    pictures = [Image.open(each).convert("RGB") for each in (left, right)]
    canvas = Image.new("RGB", (sum(each.width for each in pictures), max(each.height for each in pictures)))
    canvas.paste(pictures[0], (0, 0))
    canvas.paste(pictures[1], (pictures[0].width, 0))
    canvas.save(target)


def model_paths(comfyui: Path) -> tuple[str, ...]:
    """The argument that shows the models of the user's own ComfyUI, if they are in it."""
    models = comfyui / "models"
    if not models.is_dir():
        return ()
    file = BASE / "model_paths.yaml"
    folders = "".join(f"    {name}: {name}\n" for name in MODEL_FOLDERS)
    file.write_text(f"own_comfyui:\n    base_path: {json.dumps(str(models))}\n{folders}")
    return "--extra-model-paths-config", str(file)


# The commands

PORTRAITS = (
    "The portrait is sampled four times from one noise, each with one thing more, to be compared.",
    "photograph | plain word | with the pivot | and Reference Attention | and RB-Guidance",
)
IC_PORTRAIT = (
    "The person is painted into the other picture twice from one noise, without the nets and with them.",
    "person | picture | painted without the nets | painted with them",
)
NO_NETS = (
    f"--ic needs IC-Portrait's nets for the demo model, demo/weights/{DEMO_NETS.name}, and none are part of this "
    "repository yet; train them (docs/ic_portrait.md says how) and put the file there."
)


def demo(options: argparse.Namespace, comfyui: Path) -> None:
    choices = check(options)
    if options.ic and not DEMO_NETS.is_file():
        raise SystemExit(NO_NETS)
    prompt = (build_ic_prompt if options.ic else build_prompt)(choices)
    announced, shown = IC_PORTRAIT if options.ic else PORTRAITS
    python = python_for(comfyui)
    photo, style = existing(options.photo, "--photo"), existing(options.style, "--style")
    prepare_base(photo, need_model=choices.checkpoint is None, style=style)
    for file, folder in ((choices.checkpoint, "checkpoints"), (choices.pivot_encoder, "pivot_encoders")):
        if file:
            link(file, BASE / "models" / folder / CHOSEN / file.name)
    print(f"Starting ComfyUI from {comfyui}", flush=True)
    print(announced, flush=True)
    arguments = ("--disable-metadata", *said_device(python), *model_paths(comfyui))
    with ComfyServer(comfyui, python, BASE, CUSTOM_NODES, arguments=arguments) as server:
        show = Bar()
        outputs = server.run(prompt, show)
        show.end()
        folder = save_outputs(server, prompt, outputs, Path(options.output))
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    print(f"Saved in {folder}: {names}", flush=True)
    print(f"Look at comparison.png first: {shown}.", flush=True)


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
    side_by_side(first_photo(), second_photo(), BASE / "input" / TWO_PEOPLE)
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
