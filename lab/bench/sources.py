"""Names for what a kept result depends on: values, files, and the code that made it."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from ... import environment
from ...training import files

ROOT = environment.ROOT


def digest(*parts: object) -> str:
    """Of plain values, and of whatever has a `str`."""
    return files.digest(json.dumps(parts, sort_keys=True, default=str))


@lru_cache
def of_file(path: Path) -> str:
    """Of a file's content."""
    return files.digest_of(path)


def of_source(*places: str | Path, without: tuple[Path, ...] = ()) -> str:
    """Of the code in files and folders (relative ones from the repository's root), but for the files in `without`.

    It is a digest of all statements at the top level of all files, in no order: each function, class and assignment as
    it is. So it stays the same where files are moved, renamed, split or joined inside these places, and where comments,
    docstrings, line breaks and imports change. It changes with any other word of the code, also where a function, a
    class or a variable gets another name. It does not see in which order a module's statements run, which module a name
    is imported from, or what lies outside these places: torch, ComfyUI, weights. FileNotFoundError where there is no
    such place, since a digest of nothing would never change.
    """
    statements: list[str] = []
    for place in places:
        root = ROOT / place
        found = sorted(root.rglob("*.py")) if root.is_dir() else [root]
        statements += (each for file in found if file not in without for each in _statements(file))
    return digest(sorted(statements))


def _statements(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for each in ast.walk(tree):
        if isinstance(body := getattr(each, "body", None), list):
            each.body = [statement for statement in body if not _is_no_code(statement)]
    yield from map(ast.dump, tree.body)


def _is_no_code(statement: ast.stmt) -> bool:
    """A docstring, an import, or a block that imports for type checkers alone."""
    if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
        return True
    text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return text or isinstance(statement, (ast.Import, ast.ImportFrom))
