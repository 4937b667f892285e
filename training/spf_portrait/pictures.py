"""Samples of an attribute: a picture, its base text, and the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ...sampling.phrases import base_text, columns_of, complete_text, phrases_of
from ..data.dataset import Dataset, open_plan
from ..data.index import BadSample, Entry, is_box
from ..data.plan import Slot
from ..data.samples import SHRINK, Ready, crop_window, decode, fit
from ..settings import Data
from .config import Config

if TYPE_CHECKING:
    from ..base import Base

NO_TARGET = "no target: name it by --target, or as target in the picture's description"
NOTHING_LEFT = "nothing is left of the caption without the target"
LATE_TARGET = "the target comes too late: caption and target do not fit into one chunk of CLIP"


@dataclass(frozen=True, eq=False)
class Sample:
    """picture: [3, H, W] uint8. phrases: of the base text. place: [H / 8, W / 8] in 0..1, where the attribute is, or
    nan where nobody says; only reported, never trained on. The rest as of data.samples.Sample."""

    picture: torch.Tensor
    base: str
    target: str
    phrases: Sequence[str]
    place: torch.Tensor
    weight: float
    problem: str
    slot: Slot
    ready: Mapping[str, torch.Tensor] | None = None


class Pictures(torch.utils.data.Dataset):
    """The samples of an index by slot (`data.samples.Cacheable`). target: of those that do not name their own.
    earlier: phrases of attributes that the original has learnt before."""

    def __init__(
        self,
        entries: Sequence[Entry],
        homes: Sequence[tuple[int, int]],
        data: Data,
        target: str,
        earlier: Sequence[str] = (),
        ready: Ready | None = None,
    ) -> None:
        self.entries, self.homes, self.data = entries, homes, data
        self.target, self.earlier, self.ready = target, tuple(earlier), ready

    def __getitem__(self, slot: Slot) -> Sample:
        try:
            return self._load(slot)
        except BadSample as bad:
            width, height = self.homes[slot.sample]
            picture = torch.zeros(3, *((0, 0) if self.ready else (height, width)), dtype=torch.uint8)
            nowhere = torch.full((height // SHRINK, width // SHRINK), torch.nan)
            return Sample(picture, "", "", (), nowhere, 0.0, str(bad), slot)

    def _load(self, slot: Slot) -> Sample:
        entry, home = self.entries[slot.sample], self.homes[slot.sample]
        described = entry.description()
        base, target, phrases = texts_of(described, self.target)
        window = window_of(entry, described, home)
        picture = torch.zeros(3, 0, 0, dtype=torch.uint8)
        ready = self.ready(slot.sample) if self.ready else None
        if ready is None:
            picture = fit(decode(entry.read(entry.picture)), window, home)
        place = place_of(described.get("target_box"), (entry.width, entry.height), window, home)
        return Sample(picture, base, target, phrases, place, 1.0, "", slot, ready)

    def targets(self) -> Pictures:
        return Pictures(self.entries, self.homes, self.data, self.target, self.earlier)

    def cached(self, ready: Ready) -> Pictures:
        return Pictures(self.entries, self.homes, self.data, self.target, self.earlier, ready)

    def decides(self) -> dict[str, object]:
        return {"task": "spf-portrait", "target": self.target, "earlier": list(self.earlier)}

    def states(self, base: Base, sample: Sample) -> dict[str, torch.Tensor]:
        """rows, base_rows [77, D] and pooled, base_pooled [P] of the complete and the base text; columns [4]: of the
        base text, the end token, the target's first and one past its last; phrases [P, 2]. With `earlier` also
        earlier_rows, earlier_pooled and earlier_count [], of the base text with that attribute."""
        try:
            columns = columns_of(base.clip, sample.base, sample.target, sample.phrases)
        except ValueError:
            raise BadSample(LATE_TARGET) from None
        found = {}
        texts = {"": complete_text(sample.base, sample.target), "base_": sample.base}
        if self.earlier:
            texts["earlier_"] = complete_text(sample.base, ", ".join(self.earlier))
            try:
                end = columns_of(base.clip, sample.base, ", ".join(self.earlier), ()).end
            except ValueError:
                raise BadSample(LATE_TARGET) from None
            found["earlier_count"] = torch.tensor(end - 1)
        for name, text in texts.items():
            states = base.plain_text(text)
            found[f"{name}rows"], found[f"{name}pooled"] = states.rows.half().contiguous(), states.pooled.half()
        found["columns"] = torch.tensor([columns.base, columns.end, *columns.target])
        found["phrases"] = torch.tensor(columns.phrases).view(-1, 2)
        return found


def texts_of(described: Mapping[str, object], default: str) -> tuple[str, str, list[str]]:
    """Base text, target and phrases of a picture's description. BadSample where one of the first two is missing."""
    target = described.get("target") or default
    if not isinstance(target, str) or not target.strip():
        raise BadSample(NO_TARGET)
    base = base_text(described["caption"], target)
    if not base:
        raise BadSample(NOTHING_LEFT)
    phrases = described.get("phrases")
    told = isinstance(phrases, list) and all(isinstance(each, str) for each in phrases)
    return base, target, phrases if told else phrases_of(base)


def window_of(entry: Entry, described: Mapping[str, object], home: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of the picture that is seen: around the face where its box is known, else the middle."""
    box = described.get("face_box")
    whole = [0, 0, entry.width, entry.height]
    return crop_window((entry.width, entry.height), home, box if is_box(box, *whole[2:]) else whole)


def place_of(
    box: object, size: tuple[int, int], window: tuple[int, int, int, int], home: tuple[int, int]
) -> torch.Tensor:
    """A box of the picture on the latent's grid of its bucket: 1 inside, 0 outside; nan where there is none."""
    width, height = (side // SHRINK for side in home)
    if not is_box(box, *size):
        return torch.full((height, width), torch.nan)
    place = torch.zeros(height, width)
    x0, y0, x1, y1 = (
        round((box[i] - window[i % 2]) / (window[2 + i % 2] - window[i % 2]) * (width, height)[i % 2]) for i in range(4)
    )
    place[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = 1
    return place


def open_data(config: Config, earlier: Sequence[str] = ()) -> Dataset:
    entries, plan, problems = open_plan(config)
    return Dataset(Pictures(entries, plan.homes, config.data, config.target, earlier), plan, problems)


def first_samples(pictures: Pictures, count: int) -> list[Sample]:
    """The first usable samples of one size."""
    found: list[Sample] = []
    for number in range(len(pictures.entries)):
        sample = pictures[Slot(number, -1, number)]
        if not sample.problem and (not found or pictures.homes[number] == pictures.homes[found[0].slot.sample]):
            found.append(sample)
        if len(found) == count:
            break
    return found


def seen(pictures: Pictures, sample: Sample) -> torch.Tensor:
    """The training picture [3, H, W] in 0..1 of a sample, also where only its latents are at hand."""
    plain = pictures.targets()[replace(sample.slot)]
    return plain.picture.float() / 255
