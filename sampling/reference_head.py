"""Where the head is in a reference's photograph.

The face's mask ends at the hair line, and an ellipse with room for the hair holds a good deal of the background, which
would come along. The attention to the person's word tells the two apart.
"""

from __future__ import annotations

import torch

from ..backbone.attention import Recording
from ..guidance.omniportrait.mask import known_height, min_max, resize_map
from ..models.faces import FaceReference

ALPHA = 2.0
"""Of Eq. 6 in its inner form, once around, which keeps hair and neck."""
BETA = 0.3
"""From which on a cell belongs to the person: on rendered references 9 in 10 of the head's cells and 1 in 100 of the
wall's (tests/lab/test_reference_head.py)."""


def person_map(recording: Recording, token: int, tokens: int) -> torch.Tensor | None:
    """[1, h, w] in 0..1: where the word looks in the photograph [1, ...] that the recording is of; None where it does
    not stand out or nothing was recorded, as where a pack has its own attention, so that it tells nothing. token: the
    word's column, of so many."""
    if not recording.cross or not recording.self_:
        return None
    spread = recording.spread(token, tokens)
    if not known_height(spread) > 0:
        return None
    return (min_max(spread) ** ALPHA).cpu()


def head_mask(face: FaceReference, person: torch.Tensor | None = None) -> torch.Tensor:
    """[1, S, S] of a reference's crop in 0..1: the face by its mask, and the hair around its box; all of the crop where
    it has no mask. person: of `person_map`; without it what is around the hair is in it, too."""
    size = face.crop.shape[1]
    known = torch.zeros(1, size, size) if face.mask is None else face.mask.float().cpu()
    room = torch.ones(1, size, size) if face.mask is None else around(face, size)
    if person is not None:
        room = room * (resize_map(person.float(), (size, size)) >= BETA)
    return torch.maximum(known, room)


def around(face: FaceReference, size: int) -> torch.Tensor:
    """[1, S, S] of 0 and 1: an ellipse about the face's box with room for the hair; empty where there is no box."""
    if face.face_box is None:
        return torch.zeros(1, size, size)
    x0, y0, x1, y1 = face.face_box
    centre, radii = ((x0 + x1) / 2, (y0 + y1) / 2 - 0.15 * (y1 - y0)), (0.75 * (x1 - x0), 0.8 * (y1 - y0))
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    return (((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 <= 1)[None].float()
