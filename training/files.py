"""Files that nobody ever sees half written, and short names for what is in them."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import torch


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends without an exception.

    An interrupted block leaves what was there before, and so does one that leaves no file. The folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(4)  # machines that share the folder may share a process's number too
    part = path.with_name(f".{path.name}.{token}.part")  # not mkstemp: its files are the owner's alone
    try:
        yield part
        if part.exists():
            with part.open("r+b") as file:  # Windows flushes files that may be written only
                os.fsync(file.fileno())
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file as a whole or not at all. content: its bytes, or what writes them into an open file."""
    with whole(path) as part, part.open("wb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content)


def write_tensors(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """As safetensors."""
    import safetensors.torch

    plain = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    write_whole(path, safetensors.torch.save(plain))


def halved(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Floating-point values in half precision."""
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


def digest(*parts: str) -> str:
    """16 hex digits that name texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def digest_of(path: Path) -> str:
    """16 hex digits that name a file's content."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            found.update(piece)
    return found.hexdigest()[:16]
