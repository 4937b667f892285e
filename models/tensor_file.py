"""safetensors files from anywhere: opened with a sentence for what is wrong, and written as a whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch

MAX_JSON = 10_000
"""Characters of one value of a header."""

_SIGNATURES = (
    (b"PK\x03\x04", "a pickled checkpoint (.pt, .ckpt or .bin)"),
    (b"\x80", "a pickled checkpoint (.pt, .ckpt or .bin)"),
    (b"GGUF", "a GGUF file"),
    (b"<!DO", "a web page"),
    (b"<htm", "a web page"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
)
_CONTENTS = (
    (("lora_", ".lora_A", ".lora_B", ".lora.down"), "a LoRA"),
    (("model.diffusion_model.", "double_blocks.", "input_blocks."), "a diffusion checkpoint"),
    (("image_proj.", "ip_adapter."), "an IP-Adapter"),
    (("text_model.",), "a text encoder"),
    (("emb_params", "clip_l", "clip_g"), "a textual-inversion embedding"),
    (("visual.", "vision_model."), "a CLIP image encoder"),
)


def opened(path: str | os.PathLike, origin: str):
    """safetensors' reader, or ValueError with what the file is instead. origin: "OmniPortrait's training"."""
    from safetensors import SafetensorError, safe_open

    name = Path(path).name
    try:
        with open(path, "rb") as file:
            start = file.read(32)
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror}): check the file and its permissions.") from error
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        # Only now: safetensors begins with a length, whose bytes may be anybody's signature.
        kind = next((kind for signature, kind in _SIGNATURES if start.startswith(signature)), None)
        if kind:
            raise ValueError(
                f"{name} is {kind}, but only safetensors files are loaded: choose one from {origin}."
            ) from error
        raise ValueError(
            f"{name} is damaged, cut short or no safetensors file ({error}): download or copy it again."
        ) from error


def metadata_of(name: str, file, form: str, version: int, what: str, origin: str) -> dict[str, str]:
    """The header of an opened file of a format. ValueError for another format, and for a newer version of it."""
    metadata = file.metadata() or {}
    if metadata.get("format") != form:
        keys = list(file.keys())
        kind = next((kind for marks, kind in _CONTENTS if any(mark in key for key in keys for mark in marks)), None)
        found = f"looks like {kind}" if kind else f"does not say that it is {what}"
        raise ValueError(f"{name} {found}: choose a file that {origin} wrote (format {form}).")
    given = integer(name, metadata, "format_version", 1)
    if given > version:
        raise ValueError(
            f"{name} has format version {given}, but this OmniPortrait reads up to {version}: update "
            "ComfyUI-OmniPortrait."
        )
    return metadata


def bad(name: str, key: str, expected: str) -> ValueError:
    """The error for a value of a header."""
    return ValueError(f"{name} has a broken header: {key} must be {expected}, so copy it again or make it anew.")


def integer(name: str, metadata: Mapping[str, str], key: str, low: int) -> int:
    """A value of the header that is a whole number of at least `low`."""
    value = metadata.get(key, "")
    if not re.fullmatch(r"[0-9]{1,12}", value) or int(value) < low:
        raise bad(name, key, f"a whole number from {low}")
    return int(value)


def from_json(name: str, metadata: Mapping[str, str], key: str) -> object:
    """A value of the header that is JSON."""
    value = metadata.get(key, "")
    try:
        if len(value) <= MAX_JSON:
            return json.loads(value)
    except (ValueError, RecursionError):
        pass
    raise bad(name, key, "short, valid JSON")


def write(path: str | os.PathLike, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Nobody ever sees half a file; an interrupted write leaves the old one. The folder is made."""
    from safetensors.torch import save as serialise

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")  # not mkstemp: its files are the owner's alone
    try:
        with open(temporary, "wb") as file:
            file.write(serialise(dict(tensors), metadata=dict(metadata)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
