"""The one door for people: `python run.py demo`, `test`, `serve`, `bench`, `train`."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGE = "omniportrait"
HOME = ROOT / ".omniportrait"


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


def find_comfyui() -> Path | None:
    """The ComfyUI folder that COMFYUI_PATH names, else the one that this script installed, else None."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        folder = Path(named).expanduser().resolve()
        if not (folder / "main.py").is_file() or not (folder / "comfy").is_dir():
            raise SystemExit(f"COMFYUI_PATH is {named}, which is not a ComfyUI folder: it should hold main.py and comfy.")
        return folder
    installed = HOME / "comfyui"
    return installed if (installed / "main.py").is_file() else None


def use_comfyui() -> Path:
    """Make `import comfy` work in this process, with `--cpu` where torch sees no accelerator, and return ComfyUI's folder.

    ComfyUI parses its command line when `comfy.cli_args` is first imported, so that happens here, under arguments of our own.
    """
    folder = find_comfyui()
    if folder is None:
        raise SystemExit("No ComfyUI here: start the tests by `python run.py test`, or set COMFYUI_PATH to your ComfyUI folder.")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    import torch

    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    given, sys.argv = sys.argv, ["comfyui"] if gpu else ["comfyui", "--cpu"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # noqa: F401  parses sys.argv
    finally:
        sys.argv = given
    return folder
