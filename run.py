"""The one door for people: `python run.py demo`, `serve`, `test`, `lint`, `bench`, `train`, `dataset` and so on.

Needs Python 3.10 to 3.12 with pip and nothing else: environment.py makes the rest on the first call.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

if __package__:
    from . import environment
else:  # started or loaded as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import environment

    sys.path.pop(0)

load_pack, find_comfyui = environment.load_pack, environment.find_comfyui
environment_folder, python_of = environment.environment_folder, environment.python_of
"""For scripts outside of this repository that load this file: what they need to start a ComfyUI with the pack."""

COMMANDS = {
    "bench": {
        "ablation": "lab.bench.ablation",
        "dataset": "lab.bench.dataset",
        "direction": "lab.bench.direction",
        "ic-portrait": "lab.bench.ic_portrait",
        "matrix": "lab.bench.matrix",
        "overhead": "lab.bench.overhead",
        "photographs": "lab.bench.photographs",
        "presence": "lab.bench.presence",
        "soak": "lab.bench.soak",
        "spf": "lab.bench.spf",
        "sweeps": "lab.bench.sweeps",
    },
    "train": {
        "evaluate": "lab.bench.evaluate",
        "ic-portrait": "training.commands.ic_portrait",
        "pivot-encoder": "training.commands.pivot_encoder",
        "random-checkpoint": "training.commands.random_checkpoint",
        "shards": "training.commands.shards",
        "spf-portrait": "training.commands.spf_portrait",
        "tower": "training.commands.tower",
    },
    "make": {
        "attribute-measures": "lab.make.attribute_measures",
        "attribute-pictures": "lab.make.attribute_pictures",
        "base": "lab.make.base",
        "embedder": "lab.make.embedder",
        "help-pages": "lab.make.help_pages",
        "in-context-lora": "lab.make.in_context_lora",
        "measures": "lab.make.measures",
        "pictures": "lab.make.pictures",
        "reference": "lab.make.reference",
        "sheet": "lab.make.sheet",
        "tower-words": "lab.make.tower_words",
        "vae": "lab.make.vae",
        "web": "lab.make.web",
        "words": "lab.make.words",
        "workflows": "lab.make.workflows",
    },
}
"""The module of each command; its `main(words)` takes the command's own arguments."""
ALONE = {
    "dataset": ("training.dataset.command", environment.DATASET_LOCK),
    "evaluate": ("evaluation.command", environment.EVALUATE_LOCK),
}
"""Commands with an environment of their own: the module, and what it needs beside the development environment."""
OWN_CORE = ("test", "bench", "train", "make")
"""Commands that import ComfyUI into their own process, so they run in the Python of the ComfyUI that is named."""
LATE = ("lab.bench.dataset", "lab.bench.overhead", "lab.bench.soak")
"""Of the laboratory, those that start ComfyUI themselves or need none; the others import it at their top."""

if __name__ == "__mp_main__":  # a worker of one of them where processes are spawned, about to unpickle its task
    environment.load_pack()


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The door's own options, and the words that go on: to pytest, to ruff, or to a command of COMMANDS."""
    comfy = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    comfy.add_argument("--comfyui", metavar="PATH", help="use this ComfyUI (default: COMFYUI_PATH, else our own)")
    comfy.add_argument("--python", metavar="PATH", help="the Python of that ComfyUI (default: its own venv, else ours)")
    comfy.add_argument("--here", action="store_true", help="work in the Python that runs this, not in one of our own")
    description = "ComfyUI-OmniPortrait: try it, test it, serve it."
    parser = argparse.ArgumentParser(prog="run.py", description=description, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)

    full = {"parents": [comfy], "allow_abbrev": False}
    demo = commands.add_parser("demo", **full, help="make a portrait and save it under output/")
    demo.add_argument("--photo", metavar="PATH", help="a photograph of the person")
    demo.add_argument("--prompt", metavar="TEXT", help="what the portrait shows; it must hold the subject word")
    demo.add_argument("--subject", metavar="WORD", help="the word of the prompt that is the person (default: guessed)")
    demo.add_argument("--checkpoint", metavar="PATH", help="your SD1.5 or SDXL checkpoint")
    demo.add_argument("--pivot-encoder", metavar="PATH", help="a trained pivot encoder of the checkpoint's family")
    demo.add_argument("--seed", type=int, metavar="N")
    demo.add_argument("--steps", type=int, metavar="N")
    demo.add_argument("--size", metavar="WxH", help="default: 1024x1024 for SDXL, 512x512 for your other checkpoints")
    demo.add_argument("--ic", action="store_true", help="IC-Portrait instead: the person in another picture")
    demo.add_argument("--style", metavar="PATH", help="with --ic: the picture to be in")
    demo.add_argument("--output", metavar="FOLDER", default="output", help="default: output")

    serve = commands.add_parser("serve", **full, help="ComfyUI with its web page, the pack and its workflows")
    serve.add_argument("--port", type=int, default=8188)
    serve.add_argument("--listen", metavar="ADDRESS", default="127.0.0.1")

    plain = {**full, "add_help": False}
    commands.add_parser("test", help="all tests, or --quick; further arguments go to pytest", **plain)
    commands.add_parser("lint", help="ruff over the repository: rules and format", **plain)
    commands.add_parser("dataset", help="portraits from lists of web addresses: plan, run, pack, …", **plain)
    commands.add_parser("evaluate", help="the paper's Table 1 on any checkpoint and workflow", **plain)
    for group, modules in COMMANDS.items():
        commands.add_parser(group, help=", ".join(modules), **plain).add_argument("name", nargs="?")
    return parser.parse_known_args(arguments)


def command_lines(options: argparse.Namespace, rest: list[str], python: Path) -> list[list]:
    """What to start inside the environment, one after the other."""
    if options.command == "test":
        tests = environment.ROOT / "tests"
        named = [(environment.ROOT / word.split("::")[0]).resolve() for word in rest]
        chosen = any(path.exists() and tests in (path, *path.parents) for path in named)
        places = [] if chosen else ["tests", "--side-by-side"]
        return [[python, "-m", "pytest", "-c", "tests/pytest.ini", "--rootdir=tests", *places, *rest]]
    if options.command == "lint":
        ruff = [python, "-m", "ruff"]
        return [[*ruff, "check", environment.ROOT, *rest], [*ruff, "format", "--check", environment.ROOT]]
    if options.command in COMMANDS:
        module_of(options.command, options.name)  # a wrong name ends here, before anything is started
    return [[python, __file__, *sys.argv[1:]]]


def module_of(group: str, name: str | None) -> str:
    """The module of a command of COMMANDS. SystemExit that lists what there is."""
    known = COMMANDS[group]
    found = known.get((name or "").replace("_", "-"))
    if found is None:
        wrong = f"There is no {group} {name}" if name else f"Say what to {group}"
        raise SystemExit(f"{wrong}; there are: {', '.join(known)}.")
    return found


def main() -> int:
    options, rest = parse(sys.argv[1:])
    if options.command in ("demo", "serve") and rest:
        raise SystemExit(f"{options.command} does not know {rest[0]}; see `python run.py {options.command} --help`.")
    if options.comfyui:
        os.environ["COMFYUI_PATH"] = str(environment.check_comfyui(options.comfyui))
    if options.python:
        os.environ["COMFYUI_PYTHON"] = str(Path(options.python).expanduser().absolute())
    python, tools = (Path(sys.executable), None) if options.here else python_for(options)
    if options.command not in ("test", "lint") and (options.here or is_ours(python)):
        return work(options, rest)
    statuses = [run_inside(command, tools) for command in command_lines(options, rest, python)]
    return next(filter(None, statuses), 0)


def python_for(options: argparse.Namespace) -> tuple[Path, Path | None]:
    """The Python of the environment that a command needs, and a folder of packages beside its own; both made on the
    first call."""
    command = options.name if options.command == "bench" else options.command  # a benchmark of one of them
    if command in ALONE:
        return environment.ensure_layer(ALONE[command][1]), None
    comfyui = environment.find_comfyui() if options.command in OWN_CORE else None
    own = (environment.environment_folder() / "comfyui").resolve()
    if comfyui is not None and (comfyui.resolve() != own or os.environ.get("COMFYUI_PYTHON")):
        python = environment.python_of_comfyui(comfyui) or environment.ensure_environment()
        return python, environment.ensure_tools(python, comfyui)
    return environment.ensure_environment(), None


def is_ours(python: Path) -> bool:
    """Whether that is the Python that runs this."""
    return python == Path(sys.executable) or Path(sys.prefix).resolve() == python.parents[1].resolve()


def work(options: argparse.Namespace, rest: list[str]) -> int:
    """A command of the demo or of COMMANDS, in this process."""
    environment.load_pack()
    if options.command in ("demo", "serve"):
        module = importlib.import_module(f"{environment.PACKAGE}.demo.main")
        return module.main(options, environment.need_comfyui())
    name = ALONE[options.command][0] if options.command in ALONE else module_of(options.command, options.name)
    if name.startswith("lab.") and name not in LATE:
        environment.use_comfyui()
    return importlib.import_module(f"{environment.PACKAGE}.{name}").main(rest) or 0


def run_inside(command: list, tools: Path | None = None) -> int:
    """Run a command of the environment to its end and return its exit status. tools: more packages for its Python."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    variables |= {"PYTHONUNBUFFERED": "1"} | ({} if tools is None else {"PYTHONPATH": str(tools)})
    if comfyui := environment.find_comfyui():
        variables["COMFYUI_PATH"] = str(comfyui)
    folder = environment.ROOT if "pytest" in command else None
    with subprocess.Popen(list(map(str, command)), env=variables, cwd=folder) as process:
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the child has had it too, and is stopping its server
                continue


if __name__ == "__main__":
    raise SystemExit(main())
