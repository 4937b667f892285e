"""The measures applied to held-out renders, where the truth is known: what they are worth, in numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ...models.faces.embedder import FaceEmbedder, find_landmarks
from .detail import KnownMoles, contrasts
from .separation import Separation, Spread
from .text import HEADS, TextMeasure

EXACT_SEARCH = 0.5
"""Radii. Where a render says itself where the mole is, only its rounding and the blur of a generated copy remain."""
OTHER_PEOPLE = 4
"""On so many other people's pictures each mole is looked for in vain."""
NEIGHBOUR = 4.0
"""Radii. A place with a mark of its own this near says nothing about bare skin."""


@dataclass(frozen=True)
class Renders:
    """Rendered portraits: `pictures` [N, 3, H, W] uint8 and the descriptions that came with them."""

    pictures: torch.Tensor
    descriptions: Sequence[Mapping]

    def __len__(self) -> int:
        return len(self.descriptions)

    def picture(self, index: int) -> torch.Tensor:
        """[3, H, W] in 0..1."""
        return self.pictures[index].float() / 255

    def exact_landmarks(self) -> list[torch.Tensor]:
        return [torch.tensor(d["landmarks"], dtype=torch.float32) for d in self.descriptions]

    def found_landmarks(self) -> list[torch.Tensor | None]:
        """As the detector sees them; None where it sees no face."""
        return [find_landmarks(self.picture(i)) for i in range(len(self))]

    def people(self) -> torch.Tensor:
        return torch.tensor([d["identity"] for d in self.descriptions])


@torch.no_grad()
def embeddings(renders: Renders, landmarks: Sequence[torch.Tensor], batch: int = 16) -> torch.Tensor:
    """[N, 128] of every picture's face."""
    model, parts = FaceEmbedder(), []
    for at in range(0, len(renders), batch):
        pictures = renders.pictures[at : at + batch].float() / 255
        parts.append(model.embed(pictures, torch.stack(list(landmarks[at : at + batch]))))
    return torch.cat(parts)


def identity_separation(renders: Renders, landmarks: Sequence[torch.Tensor | None]) -> Separation:
    """Distances of two pictures of one person (low) and of two people (high), over all pairs with a face in both.

    ValueError if there are no two pictures of one person, or no two people.
    """
    seen = [i for i, five in enumerate(landmarks) if five is not None]
    people = [renders.descriptions[i]["identity"] for i in seen]
    if not 1 < len(set(people)) < len(people):
        raise ValueError(
            f"Faces are seen in {len(seen)} of {len(renders)} pictures, of {len(set(people))} people: the calibration "
            "needs two people at least, and two pictures of one."
        )
    chosen = Renders(renders.pictures[seen], [renders.descriptions[i] for i in seen])
    vectors, people = embeddings(chosen, [landmarks[i] for i in seen]), chosen.people()
    a, b = torch.triu_indices(len(seen), len(seen), 1)
    distance, same = (vectors[a] - vectors[b]).norm(dim=1), people[a] == people[b]
    return Separation.of(distance[same], distance[~same])


def references(renders: Renders) -> dict[int, int]:
    """Each person's reference portrait, which the shards put first."""
    first: dict[int, int] = {}
    for index, description in enumerate(renders.descriptions):
        first.setdefault(description["identity"], index)
    return first


def exact_moles(renders: Renders) -> torch.Tensor:
    """[K] contrasts at the places where the renderer says that a mole can be seen."""
    known = [KnownMoles.of(d) for d in renders.descriptions]
    return torch.cat([contrasts(renders.picture(i), moles, EXACT_SEARCH) for i, moles in enumerate(known)])


@dataclass(frozen=True)
class CarriedMoles:
    """Contrasts where carried moles are and are not; how far, in radii, a place was carried from where it is."""

    separation: Separation
    error: Spread


def carried_moles(renders: Renders, landmarks: Sequence[torch.Tensor | None], most_yaw: float = 90.0) -> CarriedMoles:
    """Every person's moles, carried from the reference portrait to the person's other pictures and to other people's.

    Counted as present where the renderer says that the mole is visible, as absent on other people's bare skin. Only
    pictures turned by at most `most_yaw` degrees count.
    """
    reference, present, absent, errors = references(renders), [], [], []
    people = sorted(reference)
    for number, person in enumerate(people):
        source = reference[person]
        if landmarks[source] is None:
            continue
        marks = renders.descriptions[source]["details"]
        order = [i for i, mark in enumerate(marks) if mark["kind"] == "mole" and mark["visible"]]
        seen = KnownMoles.of(renders.descriptions[source])
        known = KnownMoles(landmarks[source], seen.places, seen.radii)
        others = {people[(number + step) % len(people)] for step in range(1, OTHER_PEOPLE + 1)} - {person}
        for index, description in enumerate(renders.descriptions):
            if landmarks[index] is None or index == source or abs(description["yaw"]) > most_yaw:
                continue
            if description["identity"] == person:
                visible = [i for i, mark in enumerate(order) if description["details"][mark]["visible"]]
                placed = known.carried(landmarks[index]).chosen(visible)
                truth = torch.tensor([[description["details"][order[i]][axis] for axis in "xy"] for i in visible])
                if visible:
                    errors.append((placed.places - truth).norm(dim=1) / placed.radii)
                    present.append(contrasts(renders.picture(index), placed))
            elif description["identity"] in others:
                placed = on_bare_skin(known.carried(landmarks[index]), description)
                absent.append(contrasts(renders.picture(index), placed))
    return CarriedMoles(Separation.of(torch.cat(absent), torch.cat(present)), Spread.of(torch.cat(errors)))


def on_bare_skin(moles: KnownMoles, description: Mapping) -> KnownMoles:
    """The places that lie apart from every visible mark of the person in the picture."""
    own = torch.tensor([(d["x"], d["y"]) for d in description["details"] if d["visible"]]).reshape(-1, 2)
    return away_from(moles, own)


def away_from(moles: KnownMoles, marks: torch.Tensor) -> KnownMoles:
    """Those with none of the marks [N, 2] nearby."""
    apart = torch.cdist(moles.places, marks) > NEIGHBOUR * moles.radii[:, None]
    return moles.chosen(apart.all(1).nonzero().flatten().tolist())


@torch.no_grad()
def text_accuracy(
    renders: Renders, model: TextMeasure, landmarks: Sequence[torch.Tensor | None], batch: int = 64
) -> dict[str, float]:
    """Share of pictures for each head whose word is found."""
    right = dict.fromkeys(HEADS, 0)
    for at in range(0, len(renders), batch):
        pictures, wanted = renders.pictures[at : at + batch], renders.descriptions[at : at + batch]
        answers = model.agreement(pictures.float() / 255, wanted, landmarks[at : at + batch])
        for head, answer in answers.items():
            right[head] += int(answer.sum())
    return {head: count / len(renders) for head, count in right.items()}
