"""What Face Reference hands to the rest of the pack."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from .crop import resize


@dataclass(frozen=True, eq=False)
class FaceReference:
    """One person's face, cropped square from a photograph; `more` holds other photographs of them.

    crop: [1, S, S, 3] float32 in 0..1, CPU. Square, with margin around the face.
    mask: [1, S, S] float32 in 0..1, the face inside the crop; None means "ask the model's own attention".
    box: x0, y0, x1, y1 of the crop in pixels of the upright photograph (may reach outside of it).
    source: which backend found the face and which made the mask, for people: "facexlib, parsing".
    face_box: x0, y0, x1, y1 of the face in pixels of the crop; None where no face was found.
    landmarks: five (x, y) in pixels of the crop: eyes, nose, mouth corners, each pair from the picture's left; None
    without a face.
    more: further photographs of the same person, whose features count with this one's.
    embeddings: e_ref [D] float32 of this photograph by the key of the pivot encoder that made it; such an encoder need
    not look again.
    turns: quarter turns to the left after which the photograph was upright.
    photo_key, key: digest of all that consumers read of this photograph, and of all of them; equal for equal content.
    """

    crop: torch.Tensor
    mask: torch.Tensor | None
    box: tuple[float, float, float, float]
    source: str
    face_box: tuple[float, float, float, float] | None = None
    landmarks: tuple[tuple[float, float], ...] | None = None
    more: tuple[FaceReference, ...] = ()
    embeddings: Mapping[str, torch.Tensor] = field(default_factory=dict)
    turns: int = 0
    photo_key: str = field(init=False)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.crop.contiguous().numpy().tobytes())
        if self.mask is not None:
            digest.update(self.mask.contiguous().numpy().tobytes())
        digest.update(repr((tuple(self.crop.shape), self.face_box, self.landmarks)).encode())
        object.__setattr__(self, "photo_key", digest.hexdigest())
        for other in self.more:
            digest.update(other.key.encode())
        object.__setattr__(self, "key", digest.hexdigest())

    @property
    def photographs(self) -> tuple[FaceReference, ...]:
        """This one and the others."""
        return (self, *self.more)

    def pictures(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For the eye: crops [N, S, S, 3] and masks [N, S, S] of all photographs, at the first one's size.

        A mask is all ones where it is left to the attention.
        """
        side = self.crop.shape[1]
        crops = [resize(each.crop[0].movedim(-1, 0), side, side).movedim(0, -1) for each in self.photographs]
        masks = [torch.ones(1, side, side) if each.mask is None else each.mask for each in self.photographs]
        return torch.stack(crops).contiguous(), torch.stack([resize(mask, side, side)[0] for mask in masks])
