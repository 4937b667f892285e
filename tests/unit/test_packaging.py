"""What the registry and pip are told, and what a user gets."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

from omniportrait import environment
from PIL import Image

if sys.version_info < (3, 11):
    import tomli as tomllib
else:
    import tomllib

ROOT = environment.ROOT
BUILT = {".git", ".omniportrait", ".pytest_cache", ".ruff_cache", ".hypothesis", "__pycache__", "output"}
MIB = 2**20


def shipped() -> list[Path]:
    """The files that .comfyignore leaves in, relative to the root; it names whole folders and files only."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    left_out = [line for line in lines if line and not line.startswith("#")]
    for line in left_out:
        assert line.startswith("/") and (ROOT / line.strip("/")).exists(), f".comfyignore names {line}"
    files = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    return [
        file for file in files if not set(file.parts) & BUILT and not f"/{file.as_posix()}".startswith(tuple(left_out))
    ]


def test_pip_and_the_registry_want_the_same_packages():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^dependencies = (\[.*\])$", project, flags=re.MULTILINE)
    assert ast.literal_eval(listed) == (ROOT / "requirements.txt").read_text(encoding="utf-8").split()


def test_the_changelog_begins_with_the_version():
    (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"), flags=re.MULTILINE)
    assert re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)[0] == version


def test_a_user_gets_what_runs_and_little_else():
    """6 MiB of it are the network that compares faces."""
    files = shipped()
    assert sum((ROOT / file).stat().st_size for file in files) < 11 * MIB
    assert {"__init__.py", "requirements.txt", "models/faces/weights/mtcnn.safetensors"} <= {str(f) for f in files}


def test_nothing_that_is_shipped_imports_what_is_not():
    """Every relative import of a shipped module, also those inside functions, leads to a shipped module."""
    files = {file.as_posix() for file in shipped()}
    for file in sorted(file for file in files if file.endswith(".py")):
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                folder = Path(file).parents[node.level - 1] / (node.module or "").replace(".", "/")
                names = {folder.with_suffix(".py").as_posix(), (folder / "__init__.py").as_posix()}
                assert names & files, f"{file} imports {node.module} of {folder}, which is not shipped"


def test_the_readme_stays_short():
    """What does not fit is a page under docs/. No command clones the history, which carries old weights."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1300
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        clones = [line for line in page.read_text(encoding="utf-8").splitlines() if "git clone" in line]
        assert all("git clone --depth 1" in line for line in clones), page


def test_the_registry_finds_what_it_shows():
    """Its limits: an icon of at most 400 pixels a side, a banner of 21 to 9; no address that we do not have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    comfy, meta = project["tool"]["comfy"], project["project"]
    with Image.open(ROOT / comfy["Icon"]) as icon, Image.open(ROOT / comfy["Banner"]) as banner:
        assert icon.width == icon.height <= 400
        assert banner.width * 9 == banner.height * 21
    assert comfy["PublisherId"] and comfy["DisplayName"] and "comfyui" not in meta["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", meta["version"])
    known = " ".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    assert all(url in known for url in meta["urls"].values())


def test_what_is_optional_is_not_installed():
    """facexlib is used where it is there; its folder of the lock is the tests' alone."""
    assert "facexlib" not in (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert "facexlib" in (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
