"""Puts one person into a CONDITIONING: the pivot in the subject's row (OmniPortrait, Sec. 3.2) and the record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from ..models.faces import FaceReference
from .record import RECORDS_KEY, IdentityRecord, records_of
from .tokens import check_clip, find_subject, subject_in
from .triggers import Reading, ends_of, tokenisations, without_trigger

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
    tokens = clip.tokenize(text)
    subject = subject_in(clip, tokens, annotation.subject)
    region = None if annotation.region is None else _region(annotation.region)

    if base is None:
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
    plain = clip.tokenize(text)
    own_column = find_subject(clip, plain, subject, occurrence)  # a word that is not there at all is said first
    for reading in _readings(clip, text, plain, base):
        ends = ends_of(clip, reading.tokens)
        own = [entry[0] for entry in clip.encode_from_tokens_scheduled(reading.tokens)]
        chosen = [any(_same_text(states, *entry, ends, reading.fused) for states in own) for entry in base]
        if reading.fused:
            entries = zip(chosen, base, strict=True)
            chosen = [mine and not _reweighted(clip, own[0], entry[0], reading.fused) for mine, entry in entries]
        if any(chosen):
            try:
                if reading.columns is not None:
                    return reading.columns[own_column], chosen
                return find_subject(clip, reading.tokens, subject, occurrence), chosen
            except (ValueError, KeyError) as error:
                raise ValueError(
                    f'PhotoMaker Encode left "{subject}" out together with its trigger: write the trigger, between '
                    'spaces, right behind the word that names the person, as in "a photo of a woman photomaker".'
                ) from error
    raise ValueError(
        "The base conditioning was not made from this text: enter the same text as in the node that encoded it, and "
        "connect the same CLIP with the same clip skip and LoRAs."
    )


def _readings(clip, text: str, plain: dict, base: list) -> Iterator[Reading]:
    """What the base may be an encoding of: of the text by core's nodes, then by nodes that replace a trigger.

    CLIP reads from left to right, so the first row that differs from the plain text's is that of the word before the
    trigger, which carries the identity.
    """
    yield from map(Reading, tokenisations(clip, text))
    own = clip.encode_from_tokens_scheduled(plain)[0][0]
    firsts = {_first_difference(own, states) for states, _ in base}
    for first in sorted(firsts - {None, 0}):
        yield from without_trigger(clip, plain, first + 1)


def _first_difference(own: torch.Tensor, base: torch.Tensor | None) -> int | None:
    """The first row of `base` [1, T', D] that is not that of `own` [1, T, D]."""
    if base is None or base.ndim != 3 or base.shape[2] != own.shape[2]:
        return None
    rows = min(own.shape[1], base.shape[1])
    other = (~_same_rows(own[0, :rows], base[0, :rows])).nonzero()
    return int(other[0]) if len(other) else None


def _same_rows(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    ours, theirs = ours.float().cpu(), theirs.float().cpu()
    return (ours - theirs).norm(dim=-1) <= _SAME_ROW * ours.norm(dim=-1)


def _reweighted(clip, own: torch.Tensor, base: torch.Tensor, columns: Sequence[int]) -> bool:
    """Whether the rows at these columns are the text's own under another weight, and so hold no identity: ComfyUI
    scales a row about that of the empty text."""
    empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))[0][0][0].float().cpu()
    middle = empty[[column % len(empty) for column in columns]]
    ours, theirs = (states[0, list(columns)].float().cpu() - middle for states in (own, base))
    return bool((torch.cosine_similarity(ours, theirs, dim=-1) > 1 - _SAME_ROW).all())


def _same_text(
    own: torch.Tensor, base: torch.Tensor | None, options: dict, ends: list[int], fused: Sequence[int]
) -> bool:
    """Whether `base` [1, T', D] begins with the states of `own` [1, T, D], apart from the few that carry an identity.

    An end token has seen all of its chunk, and neither PhotoMaker nor a pivot touches it: so every one of them must
    agree. fused: columns that need not.
    """
    length = own.shape[1]
    if base is None or base.ndim != 3 or base.shape[1] < length or base.shape[2] != own.shape[2]:
        return False
    same = _same_rows(own[0], base[0, :length])
    same[list(fused)] = True
    for record in records_of(options):
        same[record.token_index] = True
    return bool(same[ends].all()) and same.float().mean().item() >= _SAME_SHARE
