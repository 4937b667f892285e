"""A person's file: one safetensors file with everything of a FaceReference, known by what its metadata says.

Tensors, for each photograph N from 0: N.crop [1, S, S, 3] and N.mask [1, S, S] float32 in 0..1, N.box [4], N.face_box
[4] and N.landmarks [5, 2] float64, N.embedding.KEY [D] float32 of the pivot encoder with that key. Mask, face box,
landmarks and embeddings may be absent. Metadata (strings): format, format_version, sources (JSON list, one text a
photograph), ssmd_cover_images (JSON list of JPEGs in base64), which ComfyUI's model library shows. Every value is
checked: the file comes from anywhere.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from ..tensor_file import bad, from_json, metadata_of, opened, write
from .crop import MAX_SIDE, resize
from .photo import MIN_PHOTO_SIDE
from .reference import FaceReference

FORMAT = "omniportrait-identity"
FORMAT_VERSION = 1
ORIGIN = "Save Identity"
SUFFIX = ".safetensors"

MAX_PHOTOGRAPHS = 64
MAX_NAME = 120
MAX_SOURCE = 100
COVER_SIDE, COVERS = 256, 4
_EMBEDDING = (8, 8192)
_FAR = 1e6
"""No coordinate is farther off, in pixels."""
_KEY = re.compile(r"(0|[1-9][0-9]?)\.(crop|mask|box|face_box|landmarks|embedding\.[0-9a-f]{64})")
_FORBIDDEN = re.compile(r'[<>:"|?*\x00-\x1f\x7f\ud800-\udfff]|^\s|^\.|[\s.]$')
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""What Windows takes for a device."""


def save(path: Path, reference: FaceReference) -> None:
    """Write a person's file. Nobody ever sees half of it. ValueError for more than MAX_PHOTOGRAPHS."""
    if len(reference.photographs) > MAX_PHOTOGRAPHS:
        raise ValueError(
            f"This person has {len(reference.photographs)} photographs, but an identity holds at most "
            f"{MAX_PHOTOGRAPHS}: connect fewer to Face Reference."
        )
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "sources": json.dumps([each.source for each in reference.photographs]),
        "ssmd_cover_images": json.dumps([_cover(each) for each in reference.photographs[:COVERS]]),
    }
    tensors = {key: value.clone() for key, value in _tensors(reference).items()}  # one photograph given twice shares
    write(path, tensors, metadata)


def load(path: Path) -> FaceReference:
    """The person of a file, bit-equal to what was saved. ValueError says what is wrong or what the file is."""
    name = Path(path).name
    with opened(path, ORIGIN) as file:
        metadata = metadata_of(name, file, FORMAT, FORMAT_VERSION, "an identity", ORIGIN)
        sources = _sources(name, metadata)
        _check_shapes(name, file, len(sources))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
    _check_values(name, tensors)
    first, *others = [_photograph(tensors, number, source) for number, source in enumerate(sources)]
    return replace(first, more=tuple(others))


def store(folder: Path, name: str, reference: FaceReference, overwrite: bool = False) -> Path:
    """Save a person in a folder under a name, which may hold subfolders, and return the file.

    Where the name is taken by somebody else it gets a number, unless it is to be overwritten; a file that already holds
    just this person is left as it is. ValueError for a name that is no file's, and where it cannot be written.
    """
    path = _path(folder, name)
    numbered = (path.with_name(f"{path.stem}_{number:05d}{SUFFIX}") for number in itertools.count(2))
    for each in itertools.chain([path], numbered):
        if not overwrite and _holds(each, reference):
            return each
        if overwrite or not each.exists():
            break
    try:
        save(each, reference)
    except OSError as error:
        raise ValueError(
            f"{each} cannot be written ({error.strerror}): free some room or choose another name, or let ComfyUI write "
            "into that folder."
        ) from error
    return each


def _path(folder: Path, name: str) -> Path:
    """The file of a name. ValueError for one that would lie elsewhere or that some system cannot have."""
    if len(name.encode("utf-8", "replace")) > MAX_NAME:
        raise ValueError(f"The identity's name is too long ({len(name)} characters): use at most {MAX_NAME}.")
    parts = name.strip().removesuffix(SUFFIX).replace("\\", "/").split("/")
    if not all(part and not _FORBIDDEN.search(part) and not _DEVICES.fullmatch(part) for part in parts):
        raise ValueError(
            f"{name!r} cannot be the name of an identity: use letters, digits, spaces, - and _, and / for a subfolder, "
            'such as "family/anna".'
        )
    return folder.joinpath(*parts[:-1], parts[-1] + SUFFIX)


def _holds(path: Path, reference: FaceReference) -> bool:
    """Whether a file holds just this person."""
    if not path.is_file():
        return False
    try:
        stored = _tensors(load(path))
    except ValueError:
        return False
    wanted = _tensors(reference)
    return stored.keys() == wanted.keys() and all(torch.equal(stored[key], wanted[key]) for key in wanted)


def _tensors(reference: FaceReference) -> dict[str, torch.Tensor]:
    found = {}
    for number, each in enumerate(reference.photographs):
        values = {
            "crop": each.crop.contiguous(),
            "mask": None if each.mask is None else each.mask.contiguous(),
            "box": _numbers(each.box),
            "face_box": _numbers(each.face_box),
            "landmarks": _numbers(each.landmarks),
        }
        values |= {f"embedding.{key}": embedding.contiguous() for key, embedding in each.embeddings.items()}
        found |= {f"{number}.{name}": value for name, value in values.items() if value is not None}
    return found


def _numbers(values: tuple | None) -> torch.Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.float64)


def _photograph(tensors: Mapping[str, torch.Tensor], number: int, source: str) -> FaceReference:
    start = f"{number}."
    own = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
    embeddings = {key.removeprefix("embedding."): value for key, value in own.items() if key.startswith("embedding.")}
    face_box, landmarks = own.get("face_box"), own.get("landmarks")
    return FaceReference(
        crop=own["crop"],
        mask=own.get("mask"),
        box=tuple(own["box"].tolist()),
        source=source,
        face_box=None if face_box is None else tuple(face_box.tolist()),
        landmarks=None if landmarks is None else tuple(map(tuple, landmarks.tolist())),
        embeddings=embeddings,
    )


def _cover(photograph: FaceReference) -> str:
    """A small picture of the crop, as the text of a JPEG."""
    small = resize(photograph.crop[0].movedim(-1, 0), COVER_SIDE, COVER_SIDE)
    picture = Image.fromarray((small.movedim(0, -1) * 255).round().byte().numpy())
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return base64.b64encode(out.getvalue()).decode()


def _sources(name: str, metadata: Mapping[str, str]) -> list[str]:
    sources = from_json(name, metadata, "sources")
    known = isinstance(sources, list) and all(isinstance(each, str) and len(each) <= MAX_SOURCE for each in sources)
    if not known or not 1 <= len(sources) <= MAX_PHOTOGRAPHS:
        raise bad(name, "sources", f"a list of 1 to {MAX_PHOTOGRAPHS} short texts, one for each photograph")
    return sources


def _check_shapes(name: str, file, count: int) -> None:
    """ValueError for tensors that no photograph has, or of another shape or type, before one is loaded."""
    slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
    missing = [f"{number}.{part}" for number in range(count) for part in ("crop", "box")]
    if absent := sorted(set(missing) - set(slices)):
        raise ValueError(f"{name} does not fit its own header: {absent[0]} is missing, so copy it or save it again.")
    for key, found in slices.items():
        match = _KEY.fullmatch(key)
        if match is None or int(match[1]) >= count:
            raise ValueError(f"{name} holds {key[:80]!r}, which no identity has: copy it or save it again.")
        side = slices[f"{match[1]}.crop"].get_shape()[1:2]
        _check_shape(name, key, match[2], found.get_shape(), found.get_dtype(), side)


def _check_shape(name: str, key: str, part: str, shape: list[int], dtype: str, side: list[int]) -> None:
    expected = {"crop": [1, *side, *side, 3], "mask": [1, *side, *side], "landmarks": [5, 2]}.get(part, [4])
    wide = part in ("box", "face_box", "landmarks")
    if part.startswith("embedding."):
        expected = [min(max(shape[0] if shape else 0, _EMBEDDING[0]), _EMBEDDING[1])]
    if shape != expected or dtype != ("F64" if wide else "F32") or (side and not MIN_PHOTO_SIDE <= side[0] <= MAX_SIDE):
        raise ValueError(
            f"{name} does not fit its own header: {key[:80]} is {dtype} of the shape {shape}, so copy it or save it "
            "again."
        )


def _check_values(name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    for key, value in tensors.items():
        part = key.split(".")[1]
        within = (0.0, 1.0) if part in ("crop", "mask") else (-_FAR, _FAR)
        fine = bool(torch.isfinite(value).all()) and within[0] <= float(value.min()) and float(value.max()) <= within[1]
        if part in ("box", "face_box"):
            fine = fine and bool(value[0] < value[2]) and bool(value[1] < value[3])
        if not fine:
            raise ValueError(
                f"{name} holds values in {key[:80]} that no face has (not finite, or out of range): it is damaged, so "
                "copy it or save it again."
            )
