"""Pairs of views of one person: the sample's own picture is the lit one, another of the person the profile."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ...guidance.ic_portrait.flow import by_places
from ...guidance.ic_portrait.masking import kept
from ...models.faces.crop import square_around, take
from ..data.dataset import Dataset, read_index
from ..data.index import BadSample, Entry, is_box
from ..data.plan import Plan, Slot, bucket_sizes
from ..data.samples import SHRINK, Samples, decode
from ..loop import seeded
from .config import Config

ALONE = (
    "the only picture of its person in its shard: give each person a folder, and train shards --people into a new one"
)
NO_LANDMARKS = "no landmarks of the face: make the shards anew"
NO_PLACES = "no places of the face, which only `make pictures --places` tells: --set matching.objective=denoising"
BROKEN_PLACES = "the map of places cannot be read"
REACH = 0.06
"""How far apart the same point of two faces may be told to be: decimetres of the world's resting template."""


@dataclass(frozen=True, eq=False)
class Pair:
    """profile, lit, masked: [3, S, S] uint8. face: [S / 8, S / 8] of the lit picture, the share that is face.
    landmarks: [2, 5, 2] of the lit picture and the profile, in shares of them. flow, known: [S / 8, S / 8, 2] and
    boolean [S / 8, S / 8], the exact way where the shards tell it. weight: 1, or 0 for a bad one, whose `problem` is
    the reason."""

    profile: torch.Tensor
    lit: torch.Tensor
    masked: torch.Tensor
    face: torch.Tensor
    landmarks: torch.Tensor
    flow: torch.Tensor
    known: torch.Tensor
    subject: str
    weight: float
    problem: str
    slot: Slot


@dataclass(frozen=True, eq=False)
class Shown:
    """One picture of a pair, cut out. pixels: [3, S, S] uint8. landmarks: [5, 2] in shares of it. window: x0, y0, x1,
    y1 of it in the photograph."""

    pixels: torch.Tensor
    landmarks: torch.Tensor
    window: tuple[int, int, int, int]


class Pairs(Samples):
    """Pairs by slot; read in the workers of a DataLoader."""

    def __init__(self, entries: Sequence[Entry], homes: Sequence[tuple[int, int]], config: Config) -> None:
        super().__init__(entries, homes, config.data, None, 0, config.seed)
        self.config = config

    def empty(self, slot: Slot, problem: str) -> Pair:
        side = self.config.data.resolution
        picture, cells = torch.zeros(3, side, side, dtype=torch.uint8), (side // SHRINK, side // SHRINK)
        return Pair(
            picture, picture, picture, torch.zeros(cells), torch.zeros(2, 5, 2), torch.zeros(*cells, 2),
            torch.zeros(cells, dtype=torch.bool), "", 0.0, problem, slot,
        )  # fmt: skip

    def _load(self, slot: Slot) -> Pair:
        config, lit = self.config, self.entries[slot.sample]
        others = [number for number in self.people.get((lit.shard, lit.identity), []) if number != slot.sample]
        if not others:
            raise BadSample(ALONE)
        random = seeded(self.seed, slot.epoch, slot.position, "pair")
        profile = self.entries[others[int(torch.randint(len(others), (), generator=random))]]
        shown = [self._shown(entry, random) for entry in (lit, profile)]
        share = float(torch.rand((), generator=random)) * config.objective.light
        flow, known = self._flow(lit, profile, *(each.window for each in shown))
        cells = self.config.data.resolution // SHRINK
        inside = take(self.face_pixels(lit)[None], shown[0].window)[None]
        return Pair(
            shown[1].pixels, shown[0].pixels, kept(shown[0].pixels, share, random),
            F.interpolate(inside, (cells, cells), mode="area")[0, 0],
            torch.stack([each.landmarks for each in shown]), flow, known,
            lit.description()["subject"], 1.0, "", slot,
        )  # fmt: skip

    def _shown(self, entry: Entry, random: torch.Generator) -> Shown:
        described, side = entry.description(), self.config.data.resolution
        landmarks = described.get("landmarks")
        numbers = np.array(landmarks, dtype=object)
        if numbers.shape != (5, 2) or not all(type(each) in (int, float) for each in numbers.flat):
            raise BadSample(NO_LANDMARKS)
        assert is_box(described["face_box"], entry.width, entry.height)  # the index has looked
        low, high = self.config.crop
        crop = low + float(torch.rand((), generator=random)) * (high - low)
        window = square_around(tuple(described["face_box"]), crop)
        pixels = take(decode(entry.read(entry.picture)), window)
        if pixels.shape[-1] != side:
            pixels = F.interpolate(pixels[None].float(), (side, side), mode="bicubic", antialias=True)[0]
            pixels = pixels.round().clamp(0, 255).byte()
        places = torch.tensor(landmarks, dtype=torch.float32) - torch.tensor(window[:2])
        return Shown(pixels.contiguous(), places / (window[2] - window[0]), window)

    def _flow(self, lit: Entry, profile: Entry, *windows: tuple) -> tuple[torch.Tensor, torch.Tensor]:
        """The exact way, where it is asked for."""
        cells = self.config.data.resolution // SHRINK
        if not self.config.matching.steps or self.config.matching.objective == "denoising":
            return torch.zeros(cells, cells, 2), torch.zeros(cells, cells, dtype=torch.bool)
        own, finer = places_of(lit, windows[0], cells), places_of(profile, windows[1], 2 * cells)
        flow, known = by_places(own, finer, REACH)
        return flow[0], known[0]


def places_of(entry: Entry, window: tuple[int, int, int, int], cells: int) -> torch.Tensor:
    """[1, cells, cells, 3]: the points that a window of a picture shows, of its map; NaN where it shows none."""
    if "place.npy" not in entry.members:
        raise BadSample(NO_PLACES)
    try:
        points = torch.from_numpy(np.load(io.BytesIO(entry.read("place.npy")), allow_pickle=False)).float()
        height, width, three = points.shape
    except (ValueError, TypeError, EOFError):
        raise BadSample(BROKEN_PLACES) from None
    if three != 3:
        raise BadSample(BROKEN_PLACES)
    share = (torch.arange(cells) + 0.5) / cells
    column = ((window[0] + share * (window[2] - window[0])) * width / entry.width).floor().long()
    row = ((window[1] + share * (window[3] - window[1])) * height / entry.height).floor().long()
    found = points[row.clamp(0, height - 1)][:, column.clamp(0, width - 1)]
    outside = ((row < 0) | (row >= height))[:, None] | (column < 0) | (column >= width)
    return torch.where(outside[..., None], torch.nan, found)[None]


def open_data(config: Config) -> Dataset:
    """The index's samples as pairs, and the plan of their batches."""
    entries, problems = read_index(config)
    sizes = bucket_sizes(config.data.resolution, 0, config.data.max_aspect)
    plan = Plan([(entry.width, entry.height) for entry in entries], sizes, config.batch, config.seed)
    return Dataset(Pairs(entries, plan.homes, config), plan, problems)
