"""safetensors files from anywhere: opened with a sentence for what is wrong, and written as a whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

MAX_JSON = 10_000
"""Characters of one value of a header."""

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}

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
    (("control_model.", "controlnet_"), "a ControlNet"),
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


def choice(name: str, metadata: Mapping[str, str], key: str, known: Iterable[str]) -> str:
    """A value of the header that is one of those known."""
    value = metadata.get(key, "")
    if value not in known:
        raise bad(name, key, f"one of {', '.join(known)}")
    return value


def from_json(name: str, metadata: Mapping[str, str], key: str) -> object:
    """A value of the header that is JSON."""
    value = metadata.get(key, "")
    try:
        if len(value) <= MAX_JSON:
            return json.loads(value)
    except (ValueError, RecursionError):
        pass
    raise bad(name, key, "short, valid JSON")


def check_shapes(name: str, file, expected: Mapping[str, list[int]], what: str) -> dict[str, torch.dtype]:
    """The types of an opened file's weights. ValueError unless it has those that are expected, by name and shape, as
    floating-point numbers."""
    slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
    odd = sorted(set(expected) ^ set(slices)) or sorted(
        key for key in expected if slices[key].get_shape() != expected[key]
    )
    if odd:
        key = odd[0]
        have = slices[key].get_shape() if key in slices else "nothing"
        raise ValueError(
            f"{name} does not fit its own header: {key} should be {expected.get(key, 'absent')} but the file has "
            f"{have}, so download it again or export it anew."
        )
    types = {key: value.get_dtype() for key, value in slices.items()}
    wrong = sorted(key for key, value in types.items() if value not in DTYPES)
    if wrong:
        raise ValueError(
            f"{name} stores {wrong[0]} as {types[wrong[0]]}, but {what} is float16, bfloat16 or float32: export it "
            "anew."
        )
    return {key: DTYPES[value] for key, value in types.items()}


def finite_tensors(name: str, file) -> dict[str, torch.Tensor]:
    """All weights of an opened file. ValueError where one is not finite."""
    weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
    broken = sorted(key for key, value in weights.items() if not torch.isfinite(value).all())
    if broken:
        raise ValueError(
            f"{name} holds weights that are not finite ({broken[0]}): its training diverged or the file is damaged, "
            "so use an earlier checkpoint or copy it again."
        )
    return weights


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
