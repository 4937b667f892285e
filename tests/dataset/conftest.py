"""The packages of requirements-dataset.lock, the web on loopback, and the command as users call it."""

from __future__ import annotations

import json
import site
import subprocess
from pathlib import Path

import pytest
from omniportrait import environment
from runs import LAYER, arguments, variables

site.addsitedir(str(environment.packages_of(LAYER.parents[1])))


@pytest.fixture(scope="session")
def web():
    from omniportrait.lab.make.web import Web

    with Web() as site:
        yield site


@pytest.fixture(scope="session")
def metadata(tmp_path_factory):
    """Writes rows (dictionaries) as a parquet file of that name and returns its path."""

    def write(rows: list[dict], name: str = "meta") -> Path:
        import duckdb

        path = tmp_path_factory.mktemp("metadata") / f"{name}.parquet"
        lines = path.with_suffix(".jsonl")
        lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source, target = (str(each).replace("'", "''") for each in (lines, path))
        duckdb.execute(f"COPY (SELECT * FROM read_json('{source}')) TO '{target}' (FORMAT parquet)")
        return path

    return write


@pytest.fixture(scope="session")
def planned(metadata):
    """Plans rows in a folder and returns its Folder. settings: of the recipe."""
    from omniportrait.training.dataset.folder import Folder
    from omniportrait.training.dataset.recipe import read
    from omniportrait.training.dataset.select import plan

    def make(root: Path, rows: list[dict], **settings) -> Folder:
        overrides = {name.replace("__", "."): value for name, value in settings.items()}
        plan(Folder(root), [str(metadata(rows))], read("plain", overrides))
        return Folder(root)

    return make


@pytest.fixture
def dataset():
    """`python run.py dataset WORDS` in the environment that run.py would find."""

    def call(*words: object, **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            arguments(*words), capture_output=True, text=True, timeout=900, env=variables(), **options
        )

    def start(*words: object) -> subprocess.Popen:
        return subprocess.Popen(arguments(*words), stdout=subprocess.PIPE, text=True, env=variables())

    call.start = start
    return call
