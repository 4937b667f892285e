"""The identity record: how a CONDITIONING says which of its tokens is which person.

A CONDITIONING holds no words, so Pivot Conditioning writes what it knows into the conditioning's own dictionary, as
core does
for ControlNet. It therefore survives Combine, Set Area, Set Mask and ControlNet Apply, and RB-Guidance and the mask
node read it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..models.faces import FaceReference

RECORDS_KEY = "omniportrait_identities"
"""Key in a conditioning's dictionary; its value is a tuple of IdentityRecord, one a person."""


@dataclass(frozen=True, eq=False)
class IdentityRecord:
    """One person in one conditioning.

    text, subject, occurrence: the prompt, the word that names the person and which of its repetitions (0 is the first).
    token_index: column of the subject's last sub-token in the conditioning, counted over all of ComfyUI's 77-token
    chunks.
    token_count: the conditioning's own number of tokens; longer keys at sampling time are this many repeated.
    region: [1, H, W] mask in 0..1 that limits this person to a part of the picture, or None.
    reference_conditioning: CONDITIONING of "a photo of a {subject}" (with the pivot, if any) for the reference
    features.
    reference_token_index: column of the subject's last sub-token in that conditioning.
    """

    text: str
    subject: str
    occurrence: int
    token_index: int
    token_count: int
    face: FaceReference
    region: torch.Tensor | None
    reference_conditioning: list
    reference_token_index: int


def records_of(conditioning_options: dict) -> tuple[IdentityRecord, ...]:
    """Records in one conditioning's dictionary, in the order in which the people were chained."""
    return tuple(conditioning_options.get(RECORDS_KEY, ()))
