"""The conditionings that a file of IC-Portrait's nets was trained with."""

from __future__ import annotations

import logging

from ..models.faces import FaceReference
from ..models.ic.handle import ICHandle
from .annotation import Annotation, Pivot, annotate
from .tokens import check_clip

log = logging.getLogger("omniportrait")


def fitting(
    clip: object, handle: ICHandle, profile: FaceReference, text: str, subject: str, pivot: Pivot | None = None
) -> tuple[list, list]:
    """Positive and negative: the text, with the profile in the subject's place where there is a `pivot`, and the empty
    text; twice the empty one where the nets were shown none.

    Raises: ValueError for a CLIP of another kind, an empty text, and a subject that the text does not hold.
    """
    check_clip(clip)
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    if handle.header.context == "empty":
        log.info("IC-Portrait Conditioning: %s was trained without a text, so none is encoded", handle.name)
        return negative, negative
    return annotate(clip, text, Annotation(profile, subject, pivot=pivot)), negative
