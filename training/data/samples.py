"""One sample of one step as tensors; a bad one becomes an empty sample of weight 0 that says why."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from ...models.faces.crop import square_around, take
from ...models.pivot.encoder import FACE_MARGIN, prepare_face
from ..loop import seeded
from ..settings import Data
from .augment import Augmentation, augment, moved_box, over_noise
from .index import BROKEN_MASK, BROKEN_PICTURE, EMPTY_MASK, BadSample, Entry, is_box
from .plan import Plan, Slot

if TYPE_CHECKING:
    from ..base import Base

SHRINK = 8
"""Pixels of the picture for one of the latent."""
REFERENCE_ROOM = 2.0
"""Side of the crop that is augmented, in sides of the face box, as Face Reference crops at inference."""
ENOUGH = 1.5
"""Pixels of an augmented crop for one that the tower sees: more of them only cost time."""


Ready = Callable[[int], Mapping[str, torch.Tensor]]
"""What the cache holds of a sample, by its number."""


@dataclass(frozen=True, eq=False)
class Sample:
    """picture: [3, H, W] uint8. mask: [H / 8, W / 8] float32, the share of each cell that is face. face: what the tower
    sees, [3, S, S]. weight: 1, or 0 for a bad sample, whose tensors are zeros and whose `problem` is the reason.
    slot: its place in the run. ready: latents and text states from the cache, if there is one (cache.py)."""

    picture: torch.Tensor
    mask: torch.Tensor
    face: torch.Tensor
    caption: str
    subject: str
    occurrence: int
    weight: float
    problem: str
    slot: Slot
    ready: Mapping[str, torch.Tensor] | None = None


class Cacheable(Protocol):
    """Samples of an index by slot whose frozen half can be computed once (cache.py)."""

    entries: Sequence[Entry]
    homes: Sequence[tuple[int, int]]
    data: Data

    def __getitem__(self, slot: Slot) -> Sample:
        """A sample, or its placeholder with the reason."""

    def targets(self) -> Cacheable:
        """The same with what is cached alone, from the shards."""

    def cached(self, ready: Ready) -> Cacheable:
        """The same with that from the cache."""

    def states(self, base: Base, sample: Sample) -> Mapping[str, torch.Tensor]:
        """The text states of a sample. BadSample where there are none."""

    def decides(self) -> Mapping[str, object]:
        """Settings that the cached content hangs on, as plain values."""


class Samples(torch.utils.data.Dataset):
    """The samples of an index by slot, with faces; read in the workers of a DataLoader."""

    def __init__(
        self,
        entries: Sequence[Entry],
        homes: Sequence[tuple[int, int]],
        data: Data,
        augmentation: Augmentation | None,
        side: int,
        seed: int,
        ready: Ready | None = None,
    ) -> None:
        """homes: each entry's bucket. side: of the tower's picture. ready: what the cache holds of an entry; the
        picture itself is then not needed."""
        self.entries, self.homes, self.data, self.augmentation = entries, homes, data, augmentation
        self.side, self.seed, self.ready = side, seed, ready
        self.people: dict[tuple[str, str], list[int]] = {}
        for number, entry in enumerate(entries):
            if entry.identity:
                self.people.setdefault((entry.shard, entry.identity), []).append(number)

    def __getitem__(self, slot: Slot) -> Sample:
        try:
            return self._load(slot)
        except BadSample as bad:
            return self.empty(slot, str(bad))

    def targets(self) -> Samples:
        """Without reference faces, which are augmented anew each time and so never cached."""
        return _Targets(self.entries, self.homes, self.data, None, self.side, self.seed)

    def cached(self, ready: Ready) -> Samples:
        return Samples(self.entries, self.homes, self.data, self.augmentation, self.side, self.seed, ready)

    def states(self, base: Base, sample: Sample) -> dict[str, torch.Tensor]:
        text = base.text(sample.caption, sample.subject, sample.occurrence)
        column = torch.tensor(text.column)
        return {"rows": text.rows.half().contiguous(), "pooled": text.pooled.half(), "column": column}

    def decides(self) -> dict[str, object]:
        return {"labels": self.data.face_labels}

    def empty(self, slot: Slot, problem: str) -> Sample:
        """The placeholder of a bad sample."""
        width, height = self.homes[slot.sample]
        picture = torch.zeros(3, *((0, 0) if self.ready else (height, width)), dtype=torch.uint8)
        mask = torch.zeros(height // SHRINK, width // SHRINK)
        return Sample(picture, mask, torch.zeros(3, self.side, self.side), "", "", 0, 0.0, problem, slot)

    def _load(self, slot: Slot) -> Sample:
        entry = self.entries[slot.sample]
        described = entry.description()
        window = crop_window((entry.width, entry.height), self.homes[slot.sample], described["face_box"])
        mask = self.mask(entry, slot.sample, window)
        ready = self.ready(slot.sample) if self.ready else None
        own = None if self.ready else decode(entry.read(entry.picture))
        picture = torch.zeros(3, 0, 0, dtype=torch.uint8)
        if own is not None:
            picture = fit(own, window, self.homes[slot.sample])
        face = self.face(slot, entry, described, own)
        words = described["caption"], described["subject"], described.get("occurrence", 0)
        return Sample(picture, mask, face, *words, 1.0, "", slot, ready)

    def face_pixels(self, entry: Entry) -> torch.Tensor:
        """[height, width] of a picture: 1 where the face is."""
        name = "mask.png" if "mask.png" in entry.members else "png"
        try:
            pixels = decode(entry.read(name), "L")[0]
        except BadSample as bad:
            raise BadSample(BROKEN_MASK if str(bad) == BROKEN_PICTURE else str(bad)) from None
        if name == "png" and self.data.face_labels:
            face = torch.isin(pixels, torch.tensor(self.data.face_labels, dtype=torch.uint8)).float()
        else:
            face = (pixels > 127).float()
        if face.shape != (entry.height, entry.width):
            face = F.interpolate(face[None, None], (entry.height, entry.width), mode="nearest-exact")[0, 0]
        return face

    def mask(self, entry: Entry, number: int, window: tuple[int, int, int, int]) -> torch.Tensor:
        """The face's share of each latent cell of the cropped picture. BadSample without a face in it."""
        face = self.face_pixels(entry)
        x0, y0, x1, y1 = window
        width, height = self.homes[number]
        cells = (height // SHRINK, width // SHRINK)
        mask = F.interpolate(face[None, None, y0:y1, x0:x1], cells, mode="area")[0, 0]
        if mask.sum() < 0.5:
            raise BadSample(EMPTY_MASK)
        return mask

    def face(self, slot: Slot, entry: Entry, described: dict, own: torch.Tensor | None) -> torch.Tensor:
        """[3, S, S] of the reference: the sample's own file, another picture of the person, or the picture itself."""
        random = seeded(self.seed, slot.epoch, slot.position, "reference")
        picture, box, shown = own, described["face_box"], entry
        others = self.people.get((entry.shard, entry.identity), []) if self.data.reference == "identity" else []
        others = [number for number in others if number != slot.sample]
        if "reference.jpg" in entry.members:
            picture = decode(entry.read("reference.jpg"))
            box, shown = described.get("reference_box"), None
            size = picture.shape[2], picture.shape[1]
            box = box if is_box(box, *size) else [0, 0, *size]
        elif others:
            shown = self.entries[others[int(torch.randint(len(others), (), generator=random))]]
            picture, box = decode(shown.read(shown.picture)), shown.description()["face_box"]
        elif picture is None:
            picture = decode(entry.read(entry.picture))
        chance = self.augmentation.background_chance if self.augmentation and shown else 0.0
        noisy = chance > 0 and float(torch.rand((), generator=random)) < chance
        mask = self.face_pixels(shown) if noisy else None
        return seen_face(picture, tuple(box), self.side, self.augmentation, random, mask)


class _Targets(Samples):
    def face(self, *_: object) -> torch.Tensor:
        return torch.zeros(3, 1, 1)


def seen_of(
    entry: Entry, side: int, augmentation: Augmentation | None = None, random: torch.Generator | None = None
) -> torch.Tensor:
    """`seen_face` of a sample on disk. BadSample for what cannot be read."""
    box = tuple(entry.description()["face_box"])
    return seen_face(decode(entry.read(entry.picture)), box, side, augmentation, random)


def seen_face(
    picture: torch.Tensor,
    box: tuple[float, float, float, float],
    side: int,
    augmentation: Augmentation | None = None,
    random: torch.Generator | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """What the tower sees of the face at `box` in a picture [3, H, W] uint8: [3, side, side] by `prepare_face`, as at
    inference, augmented where settings are given. mask: [H, W], the face; all else becomes noise."""
    if augmentation is not None:
        box = moved_box(box, augmentation.box, random)
    square = square_around(box, REFERENCE_ROOM)
    crop = take(picture, square).float() / 255
    wanted = 2.0 if augmentation is None else ENOUGH / FACE_MARGIN
    scale = min(1.0, wanted * REFERENCE_ROOM * side / crop.shape[-1])
    if scale < 1:
        crop = F.interpolate(crop[None], scale_factor=scale, mode="bilinear", antialias=True)[0]
    if mask is not None and mask.any():
        crop = over_noise(crop, take(mask[None], square), random)
    if augmentation is not None:
        crop = augment(crop, augmentation, random)
    scale = crop.shape[-1] / (square[2] - square[0])
    x0, y0, x1, y1 = ((value - square[axis % 2]) * scale for axis, value in enumerate(box))
    return prepare_face(crop.movedim(0, -1)[None], side, face_box=(x0, y0, x1, y1))[0]


def decode(content: bytes, mode: str = "RGB") -> torch.Tensor:
    """[C, H, W] uint8 of a picture's file. BadSample if it is none."""
    from PIL import Image

    try:
        pixels = np.array(Image.open(io.BytesIO(content)).convert(mode))
    except Exception:  # whatever Pillow's readers come upon
        raise BadSample(BROKEN_PICTURE) from None
    return torch.from_numpy(pixels).movedim(-1, 0) if pixels.ndim == 3 else torch.from_numpy(pixels)[None]


def crop_window(shape: tuple[int, int], size: tuple[int, int], face: Sequence[float]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the largest part of a picture (width, height) that has the bucket's aspect, as near to the
    face's middle as it goes."""
    scale = min(shape[0] / size[0], shape[1] / size[1])
    sides = [max(1, min(shape[i], round(size[i] * scale))) for i in range(2)]
    starts = [min(max(round((face[i] + face[i + 2] - sides[i]) / 2), 0), shape[i] - sides[i]) for i in range(2)]
    return starts[0], starts[1], starts[0] + sides[0], starts[1] + sides[1]


def fit(picture: torch.Tensor, window: tuple[int, int, int, int], size: tuple[int, int]) -> torch.Tensor:
    """That part of a picture [3, h, w] uint8 at the bucket's size (width, height)."""
    x0, y0, x1, y1 = window
    part = picture[:, y0:y1, x0:x1]
    if part.shape[1:] == size[::-1]:
        return part.contiguous()
    resized = F.interpolate(part[None].float(), size[::-1], mode="bicubic", antialias=True)[0]
    return resized.round().clamp(0, 255).byte()


class MicroBatches(torch.utils.data.Sampler):
    """The slots of one process's micro-batches, from a step to the last one."""

    def __init__(self, plan: Plan, start: int, steps: int, micro: int, process: int = 0, processes: int = 1) -> None:
        self.plan, self.start, self.steps, self.micro = plan, start, steps, micro
        self.process, self.processes = process, processes

    def __iter__(self) -> Iterator[list[Slot]]:
        for step in range(self.start, self.steps):
            share = self.plan.batch(step).share(self.process, self.processes)
            yield from (list(share[i : i + self.micro]) for i in range(0, len(share), self.micro))


def loader(samples: Samples, batches: Iterable[list[Slot]]) -> torch.utils.data.DataLoader:
    """Lists of Sample, in order, read ahead by the data's workers."""
    workers = samples.data.workers
    return torch.utils.data.DataLoader(
        samples, batch_sampler=batches, num_workers=workers, collate_fn=list,
        worker_init_fn=_one_thread if workers else None, prefetch_factor=2 if workers else None,
        generator=torch.Generator(),
    )  # fmt: skip


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
