"""Who is to be guided in which conditioning: the records of Pivot Conditioning, or a face and a mask given by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..models.faces import FaceReference
from .record import IdentityRecord, records_of


@dataclass(frozen=True, eq=False)
class Person:
    """One face to bring into one conditioning's rows.

    record: where its token is, or None when the place was given by hand. mask: [1, H, W] in 0..1 that limits the person
    to a part
    of the picture (a region with a record, the whole answer without). hooks: what rewrites the model's weights for this
    conditioning, or None.
    """

    face: FaceReference
    record: IdentityRecord | None
    mask: torch.Tensor | None
    conditioning: list
    hooks: object | None = None

    @property
    def token(self) -> int | None:
        """Column of the subject in the reference prompt, None when the place was given by hand."""
        return None if self.record is None else self.record.reference_token_index


@dataclass(frozen=True, eq=False)
class ByHand:
    """RB-Guidance's own face_reference and mask inputs, used where no conditioning carries a record."""

    face: FaceReference
    mask: torch.Tensor

    @classmethod
    def anywhere(cls, face: FaceReference | None) -> ByHand | None:
        """A face that may be anywhere in the picture."""
        return None if face is None else cls(face, torch.ones(1, 8, 8))

    @classmethod
    def given(cls, face: FaceReference | None, mask: torch.Tensor | None) -> ByHand | None:
        """The node's two optional inputs; None without both. mask: a MASK, of which the first is used.

        Raises: ValueError for one without the other and for an empty mask, which would otherwise show only as an
        unguided picture.
        """
        if face is None and mask is None:
            return None
        if face is None or mask is None:
            missing = "face_reference" if face is None else "mask"
            raise ValueError(f"RB-Guidance got only one of face_reference and mask; connect {missing} too, or neither.")
        mask = mask.reshape(-1, *mask.shape[-2:])[:1].float().cpu()
        if not torch.isfinite(mask).all() or mask.max() < 0.5:
            raise ValueError(
                "The mask given to RB-Guidance is empty; paint or connect a mask that is white where the face will be."
            )
        return cls(face, mask)


People = dict[tuple[str, object], tuple[Person, ...]]
"""By key of the guider's conditionings and uuid."""


def positive_keys(conds: dict[str, list]) -> list[str]:
    """The guider's conditionings that describe the picture: all but the negatives (DualCFG has two positive ones,
    PerpNeg two negative ones)."""
    return [key for key in conds if "negative" not in key]


def assign_people(conds: dict[str, list], by_hand: ByHand | None) -> People:
    """(key, uuid) of each positive conditioning that carries people, and the people.

    conds: the guider's, before ComfyUI processes them: it then copies an area, with uuid and records, to the other
    keys, whose text knows nothing of the person. Raises: ValueError when nobody is to be found.
    """
    people: People = {}
    for key in positive_keys(conds):
        for cond in conds[key]:
            records = records_of(cond)
            if records:
                hooks = cond.get("hooks")
                found = tuple(Person(r.face, r, r.region, r.reference_conditioning, hooks) for r in records)
                people[key, cond["uuid"]] = found
    if people:
        return people
    if by_hand is None:
        raise ValueError(
            "The positive conditioning does not say which person the picture shows, because nothing marks them or "
            "because another node encodes a text of its own on the way, as a detailer does with its wildcard text: "
            "connect Pivot Conditioning to the sampler's positive input, leave that text empty (or begin it with "
            "[CONCAT]), or give the node a face_reference (RB-Guidance needs a mask as well)."
        )
    for key in ["positive"] if "positive" in conds else positive_keys(conds):
        for cond in conds[key]:
            if cond.get("cross_attn") is not None:
                own = [[cond["cross_attn"], {"pooled_output": cond.get("pooled_output")}]]
                people[key, cond["uuid"]] = (Person(by_hand.face, None, by_hand.mask, own, cond.get("hooks")),)
    return people
