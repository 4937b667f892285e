"""The conditionings that a file of IC-Portrait's nets was trained with."""

from __future__ import annotations

import logging

from ..models.faces import FaceReference
from ..models.ic.handle import ICHandle
from ..models.pivot.handle import PivotHandle
from .annotation import Annotation, annotate
from .tokens import check_clip

log = logging.getLogger("omniportrait")


def fitting(
    clip: object,
    handle: ICHandle,
    profile: FaceReference,
    text: str,
    subject: str,
    pivot_encoder: PivotHandle | None = None,
) -> tuple[list, list]:
    """Positive and negative: the text, with the profile in the subject's place by a pivot encoder, and the empty text;
    twice the empty one where the nets were shown none.

    Raises: ValueError for a CLIP of another kind, an empty text, and a subject that the text does not hold.
    """
    check_clip(clip)
    negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    if handle.header.context == "empty":
        log.info("IC-Portrait Conditioning: %s has seen no text, so text and pivot are left out", handle.name)
        return negative, negative
    pivot = None if pivot_encoder is None else pivot_encoder.pivot(profile)
    return annotate(clip, text, Annotation(profile, subject, pivot=pivot)), negative
