"""From a photograph to a FaceReference: find, choose, crop, mask. Every fallback is logged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .crop import Box, crop_square, inside, square_around
from .detector import AUTO, DETECTORS, ORDERS, Backend, DetectedFace, arrange, choose_backend, find_faces
from .mask import face_oval, near_face
from .overview import draw_overview
from .photo import prepare_mask, prepare_photo
from .reference import FaceReference

STOP, WHOLE_IMAGE = "stop", "whole image"
NO_FACE_POLICIES = (STOP, WHOLE_IMAGE)
BY_LANDMARKS, BY_ATTENTION, WHOLE_CROP = "landmarks", "attention", "whole crop"
MASK_SOURCES = (AUTO, BY_LANDMARKS, BY_ATTENTION, WHOLE_CROP)

SMALL_FACE = 48
MAX_CROP_FACTOR = 6
MASK_COVERS = 0.1
"""A connected mask points at a face when it covers at least this share of the face's box."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FaceOptions:
    """The node's settings, by the names and values that people see."""

    order: str = ORDERS[0]
    index: int = 0
    crop_factor: float = 2.0
    no_face: str = STOP
    mask_source: str = AUTO
    detector: str = AUTO

    def __post_init__(self) -> None:
        """Raises ValueError for values that are not offered: ComfyUI 0.3.75 does not check a V3 node's combos."""
        offered = {"order": ORDERS, "no_face": NO_FACE_POLICIES, "mask_source": MASK_SOURCES, "detector": DETECTORS}
        for name, values in offered.items():
            if getattr(self, name) not in values:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, but Face Reference knows only {', '.join(values)}."
                )
        if self.index < 0 or not 1 <= self.crop_factor <= MAX_CROP_FACTOR:
            raise ValueError(
                f"index is {self.index} and crop_factor {self.crop_factor}, but Face Reference needs an "
                f"index of 0 or more and a crop_factor from 1 to {MAX_CROP_FACTOR}."
            )


@dataclass(frozen=True)
class FaceResult:
    """What the node puts out.

    mask: [1, S, S] for the eye, ones where the reference leaves it to the attention. overview: IMAGE [1, h, w, 3].
    """

    reference: FaceReference
    mask: torch.Tensor
    overview: torch.Tensor


def make_reference(
    image: torch.Tensor, mask: torch.Tensor | None, options: FaceOptions, facexlib_folders: Sequence[Path] = ()
) -> FaceResult:
    """Face Reference's whole work. image: IMAGE [B, H, W, C]; mask: MASK of any size or None.

    Raises ValueError, one sentence, for input that is no photograph, and without a face where the policy is to stop.
    """
    photo = prepare_photo(image)
    user_mask = prepare_mask(mask, *photo.shape[-2:])
    backend = choose_backend(options.detector, facexlib_folders)
    faces, turns = find_faces(backend.detector, photo)
    if turns:
        photo = torch.rot90(photo, turns, (-2, -1))
        user_mask = None if user_mask is None else torch.rot90(user_mask, turns, (-2, -1))
    height, width = photo.shape[-2:]
    faces = arrange(_pointed_at(faces, user_mask), options.order, height, width)
    if faces:
        face = _pick(faces, options)
        box = square_around(face.box, options.crop_factor)
    else:
        face = None
        box = _box_without_face(user_mask, options, height, width)
    crop = crop_square(photo, box)
    scale = crop.shape[-1] / (box[2] - box[0])
    in_crop = None if face is None else face.mapped(scale, -box[0] * scale, -box[1] * scale)
    face_mask, mask_name = _mask(crop, box, in_crop, user_mask, backend, options, (height, width))
    reference = FaceReference(
        crop=crop.movedim(0, -1)[None].contiguous(),
        mask=None if face_mask is None else face_mask[None].contiguous(),
        box=tuple(map(float, box)),
        source=f"{backend.detector.name if face else 'no face found'}, {mask_name}",
        face_box=None if in_crop is None else in_crop.box,
        landmarks=None if in_crop is None else in_crop.landmarks,
    )
    shown = torch.ones_like(crop[:1]) if face_mask is None else face_mask[None].clone()
    return FaceResult(reference, shown, draw_overview(photo, faces, faces.index(face) if face else None, box))


def _pick(faces: Sequence[DetectedFace], options: FaceOptions) -> DetectedFace:
    if options.index >= len(faces):
        count = "1 face was" if len(faces) == 1 else f"{len(faces)} faces were"
        raise ValueError(
            f"Face number {options.index} was asked for, but only {count} found; set index to at most "
            f"{len(faces) - 1} (the first face is 0)."
        )
    face = faces[options.index]
    size = max(face.box[2] - face.box[0], face.box[3] - face.box[1])
    if size < SMALL_FACE:
        log.warning("Face Reference: the face is only %d pixels large; fine detail cannot come from it.", round(size))
    return face


def _pointed_at(faces: list[DetectedFace], mask: torch.Tensor | None) -> list[DetectedFace]:
    """With a connected mask only the faces that it covers."""
    if mask is None or not faces:
        return faces
    kept = [face for face in faces if _cover(mask, face.box) >= MASK_COVERS]
    if not kept:
        log.warning("Face Reference: %d face(s) found, but none under the connected mask.", len(faces))
    return kept


def _cover(mask: torch.Tensor, box: Box) -> float:
    x0, y0, x1, y1 = (max(0, round(value)) for value in box)
    part = mask[y0:y1, x0:x1]
    return float(part.mean()) if part.numel() else 0.0


def _box_without_face(
    mask: torch.Tensor | None, options: FaceOptions, height: int, width: int
) -> tuple[int, int, int, int]:
    """Where to crop when no face was found: around the connected mask, else the whole image if the policy allows it."""
    if mask is not None:
        log.warning("Face Reference: no face found; the crop is made around the connected mask.")
        rows, columns = torch.nonzero(mask >= 0.5 * mask.max(), as_tuple=True)
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        return square_around(box, options.crop_factor)
    if options.no_face == STOP:
        raise ValueError(
            "No face was found in the photograph; connect one that shows a face upright and larger, or a "
            f'mask over the face, or set no_face to "{WHOLE_IMAGE}".'
        )
    log.warning("Face Reference: no face found; the whole image is used.")
    return square_around((0, 0, width, height), 1.0)


def _mask(
    crop: torch.Tensor,
    box: tuple[int, int, int, int],
    face: DetectedFace | None,
    user_mask: torch.Tensor | None,
    backend: Backend,
    options: FaceOptions,
    size: tuple[int, int],
) -> tuple[torch.Tensor | None, str]:
    """Mask [S, S] or None for the model's own attention, and its name for people. `face` is in pixels of the crop."""
    side = crop.shape[-1]
    inner = inside(box, *size, side)
    if user_mask is not None:
        mask = crop_square(user_mask[None], box)[0] * inner
        if float(mask.max()) > 0:
            return mask, "connected mask"
    if options.mask_source == WHOLE_CROP:
        return inner, "whole crop"
    if options.mask_source == BY_ATTENTION:
        return None, "attention"
    if face is None:
        log.warning("Face Reference: without a face there is no mask; the model's own attention is asked for it.")
        return None, "attention"
    if options.mask_source == AUTO and backend.parser is not None:
        mask = near_face(backend.parser.parse(crop), face) * inner
        if float(mask.mean()) >= 0.01:
            return mask, backend.parser.name
        log.warning("Face Reference: the parser found no face in the crop; the mask comes from the landmarks.")
    return face_oval(face, side) * inner, "landmarks"
