"""What Face Reference hands to the rest of the pack."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, eq=False)
class FaceReference:
    """One person's face, cropped square from a photograph.

    crop: [1, S, S, 3] float32 in 0..1, CPU. Square, with margin around the face.
    mask: [1, S, S] float32 in 0..1, the face inside the crop; None means "ask the model's own attention".
    box: x0, y0, x1, y1 of the crop in pixels of the photograph (may reach outside of it).
    source: which backend found the face and which made the mask, for people: "facexlib, parsing".
    """

    crop: torch.Tensor
    mask: torch.Tensor | None
    box: tuple[float, float, float, float]
    source: str
    key: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.crop.contiguous().numpy().tobytes())
        if self.mask is not None:
            digest.update(self.mask.contiguous().numpy().tobytes())
        object.__setattr__(self, "key", digest.hexdigest())
