"""Puts one person into a CONDITIONING: the pivot in the subject's row (OmniPortrait, Sec. 3.2) and the record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..models.faces import FaceReference
from .record import RECORDS_KEY, IdentityRecord, records_of
from .tokens import check_clip, clean_subject, find_subject, read_layouts, tokenisations

Pivot = Callable[[torch.Tensor], torch.Tensor]
"""[N, D] text states to [N, D] pivots (e_mix), for one face."""

_SAME_ROW = 0.02
_SAME_SHARE = 0.9


@dataclass(frozen=True, eq=False)
class Annotation:
    """Who is to be written where in a conditioning.

    occurrence: which repetition of the subject in the text, 0 is the first.
    strength: 0 leaves the row as it is, 1 is the pivot.
    pivot: None only annotates. region: [H, W] or [B, H, W] mask in 0..1 of any size, or None.
    """

    face: FaceReference
    subject: str
    occurrence: int = 0
    strength: float = 1.0
    pivot: Pivot | None = None
    region: torch.Tensor | None = None


def annotate(clip, text: str, annotation: Annotation, base: list | None = None) -> list:
    """CONDITIONING of `text` with the annotation's person in it; of `base` where one is given, whose other entries stay
    as they are.

    The inputs are never written to. ValueError, in one sentence for people, for whatever does not fit.
    """
    check_clip(clip)
    if not text.strip():
        raise ValueError("The text is empty: write the prompt, with the word that names the person in it.")
    if not annotation.subject.strip():
        raise ValueError('The subject is empty: enter the word of the text that names the person, such as "woman".')
    subject = clean_subject(clip, annotation.subject)
    region = None if annotation.region is None else _region(annotation.region)

    if base is None:
        tokens = clip.tokenize(text)
        column = find_subject(clip, tokens, subject, annotation.occurrence)
        entries = clip.encode_from_tokens_scheduled(tokens)
        chosen = [True] * len(entries)
    else:
        entries = base
        column, chosen = _match_base(clip, text, subject, annotation.occurrence, base)

    reference_tokens = clip.tokenize(f"a photo of a {subject}")
    reference_column = find_subject(clip, reference_tokens, subject, -1)
    reference = [
        [_with_pivot(states, reference_column, annotation), dict(options)]
        for states, options in clip.encode_from_tokens_scheduled(reference_tokens)
    ]

    def write(states: torch.Tensor, options: dict) -> list:
        records = records_of(options)
        if any(record.token_index == column for record in records):
            raise ValueError(
                f'The base conditioning already has a person at occurrence {annotation.occurrence + 1} of "{subject}": '
                "give this person another word of the text or another occurrence."
            )
        record = IdentityRecord(
            text=text,
            subject=subject,
            occurrence=annotation.occurrence,
            token_index=column,
            token_count=states.shape[1],
            face=annotation.face,
            region=region,
            reference_conditioning=reference,
            reference_token_index=reference_column,
        )
        return [_with_pivot(states, column, annotation), {**options, RECORDS_KEY: (*records, record)}]

    return [write(*entry) if mine else list(entry) for entry, mine in zip(entries, chosen, strict=True)]


def _with_pivot(states: torch.Tensor, column: int, annotation: Annotation) -> torch.Tensor:
    """A copy of `states` [B, T, D] with e_txt + strength * (e_mix - e_txt) at `column`, in float32 between."""
    states = states.clone()
    if annotation.pivot is not None and annotation.strength != 0:
        text = states[:, column].float()
        mixed = annotation.pivot(text).to(text)
        states[:, column] = (text + annotation.strength * (mixed - text)).to(states)
    return states


def _region(mask: torch.Tensor) -> torch.Tensor:
    if mask.ndim not in (2, 3):
        raise ValueError(
            f"The region has the shape {list(mask.shape)}: connect a MASK, which is [height, width] or a batch of such."
        )
    region = mask.reshape(-1, *mask.shape[-2:]).float().cpu().nan_to_num().clamp(0, 1).amax(0, keepdim=True)
    if region.max() < 0.5:
        raise ValueError(
            "The region mask is empty: paint the part of the picture where this person may appear, or disconnect it."
        )
    return region


def _match_base(clip, text: str, subject: str, occurrence: int, base: list) -> tuple[int, list[bool]]:
    """The subject's column in the base, and which of its entries are encodings of `text`."""
    find_subject(clip, clip.tokenize(text), subject, occurrence)  # a word that is not there at all is said first
    for tokens in tokenisations(clip, text):
        ends = sorted({end for layout in read_layouts(clip, tokens).values() for end in layout.ends})
        own = [entry[0] for entry in clip.encode_from_tokens_scheduled(tokens)]
        chosen = [any(_same_text(states, entry[0], entry[1], ends) for states in own) for entry in base]
        if any(chosen):
            try:
                return find_subject(clip, tokens, subject, occurrence), chosen
            except ValueError as error:
                raise ValueError(
                    f'PhotoMaker Encode left "{subject}" out together with its trigger: write the trigger, between '
                    'spaces, right behind the word that names the person, as in "a photo of a woman photomaker".'
                ) from error
    raise ValueError(
        "The base conditioning was not made from this text: enter the same text as in the node that encoded it, and "
        "connect the same CLIP with the same clip skip and LoRAs."
    )


def _same_text(own: torch.Tensor, base: torch.Tensor | None, options: dict, ends: list[int]) -> bool:
    """Whether `base` [1, T', D] begins with the states of `own` [1, T, D], apart from the few that carry an identity.

    An end token has seen all of its chunk, and neither PhotoMaker nor a pivot touches it: so every one of them must
    agree.
    """
    length = own.shape[1]
    if base is None or base.ndim != 3 or base.shape[1] < length or base.shape[2] != own.shape[2]:
        return False
    ours, theirs = own[0].float().cpu(), base[0, :length].float().cpu()
    same = (ours - theirs).norm(dim=-1) <= _SAME_ROW * ours.norm(dim=-1)
    for record in records_of(options):
        same[record.token_index] = True
    return bool(same[ends].all()) and same.float().mean().item() >= _SAME_SHARE
