"""Where each person is in the picture being made, by the attention of the sampler's own last call (Eq. 6)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from ..backbone.attention import AttentionSites, Recording, core_attention, put_recorders
from ..backbone.family import Family
from ..guidance.omniportrait import mask as face
from ..guidance.omniportrait.settings import Settings
from .people import Person


def sites_of(family: Family, size: tuple[int, int]) -> AttentionSites:
    """Where own faces are looked for in a latent of a size: not in the middle block, perturbed attention's."""
    sites = family.sites(family.feature_block(-1), size)
    return replace(sites, self_=tuple(key for key in sites.self_ if key[0] != "middle"))


class OwnFaces:
    """Records the attention of each prediction and tells the next one which of its tokens are whose.

    people: by the uuid of their conditioning. At the first call nothing is known yet, so nobody is anywhere.
    absent: how many predictions had no picture with the person, by the person's word.
    """

    def __init__(self, people: Mapping[object, tuple[Person, ...]]) -> None:
        self._people = people
        self.absent: Counter[str] = Counter()
        self._settings = Settings()
        self._floors: Mapping[Person, float] = {}
        self._settled, self._gone = False, set[Person]()
        self._now: dict[object, Recording] = {}
        self._found: dict[object, tuple[torch.Tensor, torch.Tensor]] = {}

    def record(self, options: dict, sites: AttentionSites, floors: Mapping[Person, float], settled: bool) -> None:
        """Put recorders into one prediction's options, on copies of their tables. floors: below which prominence
        (mask.prominence) a person is not in a picture; who has none is in each. settled: nobody appears any more, so
        that whoever is in no picture stays out."""
        self._floors, self._settled = floors, settled
        if not settled:
            self._gone.clear()
        self._now = {uuid: Recording() for uuid in self._people}
        put_recorders(options, sites, self._rows_of, core_attention)

    def stop(self, texts: Mapping[object, int]) -> None:
        """The prediction is over, and what was recorded becomes masks for the next one. texts: how many tokens the text
        of each conditioning has, by uuid."""
        self._found = {
            uuid: self._faces(uuid, each, texts[uuid])
            for uuid, each in self._now.items()
            if each.cross or each.replaced
        }
        self._now = {}

    def inside(self, uuid: object, size: tuple[int, int]) -> torch.Tensor:
        """Boolean [B or 1, K, h * w]: which tokens of a grid are whose, of the people of a conditioning."""
        if uuid not in self._found:
            return torch.zeros(1, len(self._people[uuid]), size[0] * size[1], dtype=torch.bool)
        maps, masks = self._found[uuid]
        maps = torch.stack([face.resize_map(each, size) for each in maps])
        masks = torch.stack([face.resize_mask(each, size) for each in masks])
        return face.disjoint(maps, masks).flatten(2).movedim(0, 1)

    def _faces(self, uuid: object, recording: Recording, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. 6 for each of a conditioning's people: refined maps and masks, float and boolean [K, B, h, w], CPU."""
        s, refined, masks = self._settings, [], []
        for person in self._people[uuid]:
            maps = face.refine(
                recording.token_map(person.record.token_index, tokens),
                recording.smooth,
                s.alpha,
                s.gamma,
                s.refinement,
            ).cpu()
            mask = face.threshold(maps, s.beta)
            floor = self._floors.get(person, 0.0)
            if floor > 0:
                spread = recording.spread(person.record.token_index, tokens).cpu()
                mask = mask & (face.prominence(spread) >= floor).view(-1, 1, 1) & (person not in self._gone)
            if not mask.any():
                self.absent[person.record.subject] += 1
                if self._settled:
                    self._gone.add(person)
            refined.append(maps)
            masks.append(mask)
        return torch.stack(refined), torch.stack(masks)

    def _rows_of(self, extra: dict, rows: int) -> Iterator[tuple[Recording, slice]]:
        """Where the rows of each wanted conditioning are in a call."""
        each = rows // len(extra["uuids"])
        for number, uuid in enumerate(extra["uuids"]):
            if uuid in self._now:
                yield self._now[uuid], slice(number * each, (number + 1) * each)
