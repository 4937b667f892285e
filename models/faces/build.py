"""From photographs of a person to a FaceReference: find, choose, crop, mask. Every fallback is logged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from .crop import Box, crop_square, inside, paste, square_around, turned_back
from .detector import AUTO, DETECTORS, ORDERS, Backend, arrange, choose_backend, find_faces
from .face import DetectedFace
from .mask import face_oval, near_face
from .overview import draw_overview
from .photo import prepare_mask, prepare_photo
from .reference import FaceReference

STOP, WHOLE_IMAGE, SKIP = "stop", "whole image", "skip"
NO_FACE_POLICIES = (STOP, WHOLE_IMAGE, SKIP)
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
    """What the node puts out, for N photographs of one person.

    crop: IMAGE [N, S, S, 3] and mask: [N, S, S], of the first one's size, for the eye: ones where the reference leaves
    the mask to the attention. overview: IMAGE [N, h, w, 3]. photo_mask: [B, H, W], the mask over the photographs as
    they came, empty for one that was left out. boxes: x, y, width, height of each face there, in pixels.
    """

    reference: FaceReference
    crop: torch.Tensor
    mask: torch.Tensor
    overview: torch.Tensor
    photo_mask: torch.Tensor
    boxes: tuple[tuple[int, int, int, int], ...]


class NoFaceError(ValueError):
    """A photograph without a face that is certain; no_face says what follows."""


@dataclass(frozen=True)
class _Face:
    """One photograph's share of a FaceResult: overview [1, h, w, 3], photo_mask [H, W]."""

    reference: FaceReference
    overview: torch.Tensor
    photo_mask: torch.Tensor
    box: tuple[int, int, int, int]


def make_references(
    images: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor | None],
    options: Sequence[FaceOptions],
    facexlib_folders: Sequence[Path] = (),
) -> list[FaceResult]:
    """A list of photographs, each of somebody, or of batches; masks and options are one for each.

    Those without a face are left out where the policy is to skip: NoFaceError if none is left. Else as make_reference.
    """
    results: list[FaceResult] = []
    for number, (image, mask, option) in enumerate(zip(images, masks, options, strict=True), 1):
        place = f"entry {number} of {len(images)} in the list" if len(images) > 1 else ""
        try:
            results.append(make_reference(image, mask, option, facexlib_folders, place))
        except NoFaceError as error:
            if option.no_face != SKIP or len(images) == 1:
                raise
            log.warning("Face Reference skips one. %s", error)
    if not results:
        raise NoFaceError(f"No face was found in any of the {len(images)} photographs; connect one that shows a face.")
    return results


def make_reference(
    image: torch.Tensor,
    mask: torch.Tensor | None,
    options: FaceOptions,
    facexlib_folders: Sequence[Path] = (),
    place: str = "",
) -> FaceResult:
    """Face Reference's whole work: one person of a batch of photographs.

    image: IMAGE [B, H, W, C]; mask: MASK of any size, one for all or one for each, or None. place: words that tell
    this batch from others. Raises ValueError, one sentence, for input that is no photograph, and NoFaceError without a
    face where the policy is to stop, or where it is to skip and nothing is left.
    """
    backend = choose_backend(options.detector, facexlib_folders)
    count = image.shape[0] if image.ndim == 4 else 1
    found: dict[int, _Face] = {}
    for number in range(max(1, count)):
        try:
            found[number] = _one(image[number : number + 1], _mask_of(mask, number), options, backend)
        except NoFaceError as error:
            sentence = _at(place, f"photograph {number + 1} of {count}" if count > 1 else "") + str(error)
            if options.no_face != SKIP or count == 1:
                raise NoFaceError(sentence) from None
            log.warning("Face Reference skips one. %s", sentence)
    if not found:
        nothing = f"No face was found in any of the {count} photographs; connect one that shows a face."
        raise NoFaceError(_at(place) + nothing)
    return _together(list(found.values()), [found.get(number) for number in range(count)], image.shape[1:3])


def _at(*places: str) -> str:
    """ "Entry 2 of 3 in the list, photograph 1 of 4: " or nothing."""
    words = ", ".join(place for place in places if place)
    return f"{words[0].upper()}{words[1:]}: " if words else ""


def _together(faces: list[_Face], places: list[_Face | None], size: tuple[int, int]) -> FaceResult:
    """The first photograph leads, the others follow it in the reference."""
    first, *others = faces
    reference = replace(first.reference, more=tuple(face.reference for face in others))
    overviews = [face.overview[0] for face in faces]
    height, width = (max(picture.shape[axis] for picture in overviews) for axis in (0, 1))  # a turned one differs
    empty = torch.zeros(size)
    return FaceResult(
        reference,
        *reference.pictures(),
        torch.stack([F.pad(p, (0, 0, 0, width - p.shape[1], 0, height - p.shape[0])) for p in overviews]),
        torch.stack([empty if face is None else face.photo_mask for face in places]),
        tuple(face.box for face in faces),
    )


def _mask_of(mask: torch.Tensor | None, number: int) -> torch.Tensor | None:
    """The mask of one photograph of a batch; a single one is for all of them."""
    if mask is None or mask.ndim < 3 or mask.shape[0] <= 1:
        return mask
    return mask[min(number, mask.shape[0] - 1)][None]


def _one(image: torch.Tensor, mask: torch.Tensor | None, options: FaceOptions, backend: Backend) -> _Face:
    photo = prepare_photo(image)
    user_mask = prepare_mask(mask, *photo.shape[-2:])
    faces, turns = find_faces(backend.detector, photo)
    if turns:
        photo = torch.rot90(photo, turns, (-2, -1))
        user_mask = None if user_mask is None else torch.rot90(user_mask, turns, (-2, -1))
    height, width = photo.shape[-2:]
    faces = arrange(_pointed_at(faces, user_mask), options.order, height, width)
    face = _pick(faces, user_mask, options)
    if face is None:
        box = _box_without_face(faces, user_mask, options, height, width)
    else:
        box = square_around(face.box, options.crop_factor)
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
        turns=turns,
    )
    shown = torch.ones_like(crop[0]) if face_mask is None else face_mask.clone()
    note = f"turned by {turns * 90} degrees" if turns else ""
    overview = draw_overview(photo, faces, faces.index(face) if face else None, box, note)
    whole = torch.rot90(paste(shown, box, height, width), -turns, (-2, -1))
    bounds = turned_back(box if face is None else face.box, turns, height, width)
    return _Face(reference, overview, whole.contiguous(), _inside(bounds, *whole.shape))


def _inside(box: Box, height: int, width: int) -> tuple[int, int, int, int]:
    """x, y, width, height on whole pixels of the part of a box that lies in the picture; one pixel at least."""
    x0, y0 = min(max(0, round(box[0])), width - 1), min(max(0, round(box[1])), height - 1)
    return x0, y0, max(1, min(width, round(box[2])) - x0), max(1, min(height, round(box[3])) - y0)


def _pick(faces: Sequence[DetectedFace], mask: torch.Tensor | None, options: FaceOptions) -> DetectedFace | None:
    """The face that order and index ask for; None where there is none, or only doubtful ones that no mask covers."""
    if not faces or (mask is None and not faces[0].sure):
        return None
    if options.index >= len(faces):
        count = "1 face was" if len(faces) == 1 else f"{len(faces)} faces were"
        raise ValueError(
            f"Face number {options.index} was asked for, but only {count} found; set index to at most "
            f"{len(faces) - 1} (the first face is 0)."
        )
    face = faces[options.index]
    if not face.sure:
        log.warning("Face Reference: the face that is taken is doubtful (%.2f): see the overview.", face.trust)
    size = max(face.box[2] - face.box[0], face.box[3] - face.box[1])
    if size < SMALL_FACE:
        log.warning("Face Reference: the face is only %d pixels large; fine detail cannot come from it.", round(size))
    return face


def _pointed_at(faces: list[DetectedFace], mask: torch.Tensor | None) -> list[DetectedFace]:
    """With a connected mask only the faces that it covers. ValueError where it leaves out every sure one."""
    if mask is None or not faces:
        return faces
    kept = [face for face in faces if _cover(mask, face.box) >= MASK_COVERS]
    sure = sum(face.sure for face in faces)
    if not kept and sure:
        found = "1 face was found, but the connected mask does not cover it"
        if sure > 1:
            found = f"{sure} faces were found, but the connected mask covers none of them"
        raise ValueError(
            f"{found}: paint the mask over the face that you mean (disconnect it and look at the overview output, "
            "which shows where they are), or leave it disconnected and choose by order and index."
        )
    return kept


def _cover(mask: torch.Tensor, box: Box) -> float:
    x0, y0, x1, y1 = (max(0, round(value)) for value in box)
    part = mask[y0:y1, x0:x1]
    return float(part.mean()) if part.numel() else 0.0


def _box_without_face(
    doubtful: Sequence[DetectedFace], mask: torch.Tensor | None, options: FaceOptions, height: int, width: int
) -> tuple[int, int, int, int]:
    """Where to crop without a sure face: around the connected mask, else the whole image if the policy allows it."""
    if mask is not None:
        log.warning("Face Reference: no face found; the crop is made around the connected mask.")
        rows, columns = torch.nonzero(mask >= 0.5 * mask.max(), as_tuple=True)
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        return square_around(box, options.crop_factor)
    found = "No face was found in the photograph"
    if doubtful:
        most = max(face.trust for face in doubtful)
        found = f"No face was found for certain in the photograph, only {len(doubtful)} doubtful ({most:.2f} of 1)"
    if options.no_face != WHOLE_IMAGE:
        raise NoFaceError(
            f"{found}; connect one that shows a face upright and larger, or a "
            f'mask over the face, or set no_face to "{WHOLE_IMAGE}".'
        )
    if doubtful:
        log.warning("Face Reference: %s; the whole image is used.", found[0].lower() + found[1:])
    else:
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
