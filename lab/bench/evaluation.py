"""The numbers by which a pivot encoder is judged, on held-out people whose faces are known.

IoU: A_t(m) over its maximum, averaged over four noise levels, above a half, against the true face on the same grid.
Spread: of e_mix - e_txt, between people and within the pictures of one; without the first nothing tells who it is.
Stranger: how much more the denoiser errs in a true face with a stranger's reference than with the own (stranger.py).
Distance: of the faces of generated portraits to the person's own reference and to other people's, in an embedding that
nothing in training has seen (lab/measures).
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from ...evaluation.intervals import over_people
from ...models.pivot import file as pivot_checkpoint
from ...models.pivot.encoder import PivotEncoder
from ...training.base import Base, load_base
from ...training.data.dataset import read_index
from ...training.data.index import Entry
from ...training.data.plan import Slot, bucket_sizes, nearest
from ...training.data.samples import Sample, Samples, decode, seen_of
from ...training.pivot import config as settings
from ...training.pivot.config import Config
from ...training.pivot.sheets import attention, portraits
from ...training.pivot.step import Encoder, Inputs, gather
from .stranger import TIMESTEPS, Pair, by_person, percent

log = logging.getLogger(__name__)

INSIDE = 0.5


def iou(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """[B] intersection over union of maps [B, h, w] (in 0..1) and true masks [B, H, W] on the maps' grid."""
    masks = F.interpolate(masks[:, None], maps.shape[-2:], mode="area")[:, 0] >= INSIDE
    found = maps >= INSIDE
    union = (found | masks).sum((1, 2)).clamp_min(1)
    return (found & masks).sum((1, 2)) / union


def interval(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Mean over people of the means of their values, with its 95% interval, for JSON."""
    found = over_people((person, value) for person, each in values.items() for value in each)
    if found is None:
        raise ValueError("None of these samples can be used: `train pivot-encoder --dry-run` on them says why.")
    return asdict(found)


@dataclass(frozen=True, eq=False)
class Person:
    """reference: the person's first sample. views: the others."""

    name: str
    reference: int
    views: tuple[int, ...]


class Evaluation:
    """One base model and the held-out people."""

    def __init__(self, base: Base, config: Config, entries: list[Entry], options: argparse.Namespace) -> None:
        self.base, self.options, self.entries = base, options, entries
        self.scratch: tempfile.TemporaryDirectory | None = None
        """Lives as long as this."""
        self._known: dict[str, list[Inputs]] = {}
        """Each person's views, whose latents and text are the same for every encoder."""
        sizes = bucket_sizes(config.data.resolution, config.data.bucket_step, config.data.max_aspect)
        self.homes = [nearest(entry.width, entry.height, sizes) for entry in entries]
        self.config = config
        groups: dict[str, list[int]] = defaultdict(list)
        for number, entry in enumerate(entries):
            groups[entry.identity or entry.key].append(number)
        self.people = [
            Person(name, numbers[0], tuple(numbers[1:])) for name, numbers in groups.items() if len(numbers) > 1
        ][: options.people]
        if len(self.people) < 2:
            raise ValueError("These shards hold no two people with two pictures each: each sample needs an identity.")

    @classmethod
    def open(cls, options: argparse.Namespace) -> Evaluation:
        overrides = {"checkpoint": options.checkpoint, "data.shards": options.data, "data.cached": False}
        scratch = None if options.out else tempfile.TemporaryDirectory()  # for the index and downloads
        overrides["out"] = str(Path(options.out).parent) if options.out else scratch.name
        config = settings.read(options.config, overrides)
        config = replace(config, precision="fp32", checkpointing=False)
        entries, _ = read_index(config)
        made = cls(load_base(config), config, entries, options)
        made.scratch = scratch
        return made

    @torch.no_grad()
    def measure(self, path: Path | None) -> dict:
        """All numbers of one encoder; of the plain text for None."""
        encoder, side = None, 8
        if path is not None:
            encoder, header = pivot_checkpoint.load(path, torch.float32)
            encoder, side = encoder.to(self.base.device), header.config.tower.image_size
        result: dict = {"iou": interval(self._attention(encoder, side))}
        if encoder is not None:
            result["spread"] = self._spread(encoder, side)
            result["stranger"] = self._stranger(encoder, side)  # plain text is the same for everybody: it has no own
        if self.options.portraits:
            result |= self._distances(encoder, side)
        return result

    def _with_reference(self, person: Person, numbers: Sequence[int], side: int) -> list[Sample]:
        """Samples of a person's pictures whose tower sees the person's reference."""
        face = self._face(person.reference, side)
        samples = Samples(self.entries, self.homes, replace(self.config.data, reference="own"), None, side, 0)
        found = [samples[Slot(number, -1, number)] for number in numbers]
        return [replace(sample, face=face) for sample in found if not sample.problem]

    def _views(self, person: Person, side: int) -> list[Inputs]:
        """A person's pictures, whose tower sees the person's reference. Encoded once."""
        if person.name not in self._known:
            found = self._with_reference(person, person.views[: self.options.views], side)
            inputs = [gather([sample], self.base) for sample in found]
            self._known[person.name] = [each for each in inputs if not each.problems]
        face = self._face(person.reference, side)[None]
        return [replace(each, faces=face) for each in self._known[person.name]]

    def _stranger(self, encoder: Encoder, side: int) -> dict | None:
        """Per cent by which the denoiser errs more in a face with a stranger's reference: with the timesteps' ratios
        averaged as logs, and at each of them. None where no two people have the same noun."""
        pairs = []
        for person in self.people:
            if rival := self._rival(person):
                stranger = self._face(rival.reference, side)
                pairs += [Pair(person.name, view, stranger) for view in self._views(person, side)]
        if not pairs:
            return None
        found = by_person(self.base, encoder, pairs, self.options.seed)
        means = {name: [sum(row) / len(row) for row in rows] for name, rows in found.items()}
        at = {}
        for i, look in enumerate(TIMESTEPS):
            at[str(look)] = percent(interval({name: [row[i] for row in rows] for name, rows in found.items()}))
        return {"percent": percent(interval(means)), "at": at}

    def _rival(self, person: Person) -> Person | None:
        """The next person, from the last on to the first, of the same noun."""
        place = self.people.index(person)
        others = self.people[place + 1 :] + self.people[:place]
        return next((each for each in others if self._noun(each) == self._noun(person)), None)

    def _noun(self, person: Person) -> str:
        return self.entries[person.reference].description()["subject"]

    def _spread(self, encoder: Encoder, side: int) -> dict[str, float]:
        """Of e_mix - e_txt. between, within: mean distances of people's means from the mean of all, and of a person's
        pictures from their own mean. common: length of the mean of all."""
        means, within = [], []
        for person in self.people:
            entry = self.entries[person.reference]
            told = entry.description()
            text = self.base.text(told["caption"], told["subject"], told.get("occurrence", 0))
            faces = [self._face(number, side) for number in (person.reference, *person.views[: self.options.views])]
            word = text.rows[text.column].expand(len(faces), -1).to(self.base.device)
            change = encoder(torch.stack(faces).to(self.base.device), word) - word
            means.append(change.mean(0))
            within.append((change - means[-1]).norm(dim=1).mean())
        every = torch.stack(means)
        return {
            "between": float((every - every.mean(0)).norm(dim=1).mean()),
            "within": float(torch.stack(within).mean()),
            "common": float(every.mean(0).norm()),
        }

    def _face(self, number: int, side: int) -> torch.Tensor:
        entry = self.entries[number]
        return seen_of(entry, side)

    def _attention(self, encoder: PivotEncoder | None, side: int) -> dict[str, list[float]]:
        values: dict[str, list[float]] = {}
        for person in self.people:
            for inputs in self._views(person, side):  # one by one: pictures may differ in size
                maps = attention(self.base, encoder or plain, inputs, self.options.seed)
                values.setdefault(person.name, []).append(float(iou(maps, inputs.masks)[0]))
        return values

    def _distances(self, encoder: PivotEncoder | None, side: int) -> dict:
        """Distances of the portraits to their own reference, and to those of others with the same noun."""
        from ...models.faces.embedder import FaceEmbedder, find_landmarks

        embedder = FaceEmbedder()

        def embed(picture: torch.Tensor) -> torch.Tensor | None:
            five = find_landmarks(picture)
            return None if five is None else embedder.embed(picture[None], five[None])[0]

        references = {}
        for person in self.people:
            entry = self.entries[person.reference]
            known = embed(decode(entry.read(entry.picture)).float() / 255)
            if known is not None:
                references[person.name] = known
        nouns = {person.name: self._noun(person) for person in self.people}
        own, others, nearer, missing = {}, {}, {}, 0
        for person in self.people:
            if person.name not in references:
                continue
            found = self._with_reference(person, person.views[: self.options.portraits], side)
            rivals = [n for n in references if n != person.name and nouns[n] == nouns[person.name]]
            for place, sample in enumerate(found):
                inputs = gather([sample], self.base)
                seed = self.options.seed + 1000 * place
                made = portraits(
                    self.base, encoder or plain, inputs, self.options.steps, self.options.cfg, seed
                )  # fmt: skip
                face = embed(made[0])
                if face is None or not rivals:
                    missing += face is None
                    continue
                near = float((face - references[person.name]).norm())
                far = torch.stack([(face - references[rival]).norm() for rival in rivals])
                own.setdefault(person.name, []).append(near)
                others.setdefault(person.name, []).append(float(far.mean()))
                nearer.setdefault(person.name, []).append(float((far > near).float().mean()))
        if not own:
            return {"distance": None, "without_face": missing}
        gain = {name: [o - n for n, o in zip(own[name], others[name], strict=True)] for name in own}
        return {
            "distance": {"own": interval(own), "others": interval(others), "gain": interval(gain)},
            "rank": interval(nearer),
            "without_face": missing,
        }


def plain(faces: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """No encoder: e_txt."""
    return text


def lines(results: Mapping[str, dict]) -> list[str]:
    """For people. rank: the share of other people (of the same noun) whose reference is farther; 0.5 is chance."""
    text = []
    for name, result in results.items():
        text.append("plain text, no encoder" if name == "None" else name)
        text.append(f"  IoU of the attention with the face     {_shown(result['iou'])}")
        if spread := result.get("spread"):
            told = "between people {between:.2f}, of one {within:.2f}, in common {common:.2f}".format(**spread)
            text.append(f"  e_mix - e_txt                          {told}")
        if stranger := result.get("stranger"):
            shown = _shown(stranger["percent"], "+.3f", "%")
            text.append(f"  errs more with a stranger's reference  {shown}")
            each = ", ".join(f"{value['mean']:+.3f}% at t = {look}" for look, value in stranger["at"].items())
            text.append(f"    of this                              {each}")
        if distance := result.get("distance"):
            text.append(f"  distance to the own reference          {_shown(distance['own'])}")
            text.append(f"  distance to other people's             {_shown(distance['others'])}")
            text.append(f"  difference (above 0: it is the person) {_shown(distance['gain'])}")
            text.append(f"  rank of the own reference              {_shown(result['rank'])}")
        if "without_face" in result:
            text.append(f"  portraits without a face               {result['without_face']}")
    return text


def _shown(value: Mapping[str, float], form: str = ".3f", unit: str = "") -> str:
    mean, low, high = (f"{value[name]:{form}}{unit}" for name in ("mean", "low", "high"))
    return f"{mean}  [{low}, {high}]  {value['people']} people"
