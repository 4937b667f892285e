"""Which tokens of a picture see which person's reference: all of them, those of a region, or those of the own face."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..backbone.attention import AttentionSites
from ..guidance.omniportrait.mask import shrink
from ..guidance.reference_attention.attend import tokens_inside
from ..guidance.reference_attention.settings import Where
from .own_face import OwnFaces
from .people import Person, positive_keys


class SeenFrom:
    """people: by the uuid of their conditioning. canvas: (H, W) of the latent. sites: where a face is looked for.

    finds_faces: whether own faces are looked for. seen: whether anybody's reference was to be seen in this prediction.
    Of several people each stays in the own region or, where one has none, in the own face. Raises: ValueError where the
    own face is asked for and no word says whose it is.
    """

    def __init__(
        self,
        people: Mapping[object, tuple[Person, ...]],
        where: Where,
        canvas: tuple[int, int],
        sites: AttentionSites,
    ) -> None:
        everybody = [person for each in people.values() for person in each]
        if where == "own face" and any(person.record is None for person in everybody):
            raise ValueError(
                "Reference Attention finds a person's own face by the word that Pivot Conditioning marks: connect that "
                "node to the sampler's positive input, or set where to whole picture."
            )
        if where != "own face" and len({person.face.key for person in everybody}) > 1:
            where = "region" if all(person.mask is not None for person in everybody) else "own face"
        self._people, self._canvas, self._sites = people, canvas, sites
        self._everywhere = where == "whole picture"
        self._faces = OwnFaces(people) if where == "own face" else None
        self.finds_faces, self.seen = self._faces is not None, False
        self._areas: dict[object, object] = {}
        self._texts: dict[object, int] = {}
        self._masks: dict[tuple, torch.Tensor] = {}

    @property
    def absent(self) -> dict[str, int]:
        """In how many predictions no picture showed a person, by the person's word."""
        return {} if self._faces is None else dict(+self._faces.absent)

    def start(self, conds: dict[str, list[dict]], options: dict, floors: Mapping[Person, float], settled: bool) -> None:
        """A prediction begins. conds: the guider's, processed. options: its transformer_options, a private copy.
        floors, settled: of OwnFaces.record."""
        self._areas = {cond["uuid"]: cond.get("area") for each in conds.values() for cond in each}
        self._masks, self.seen = {}, False
        if self._faces is not None:
            self._faces.record(options, self._sites, floors, settled)
            self._texts = _text_lengths(conds)

    def stop(self) -> None:
        """ComfyUI has made its prediction; only its own attention tells where the faces are."""
        if self._faces is not None:
            self._faces.stop(self._texts)

    def inside(
        self, uuid: object, people: list[Person], size: tuple[int, int], device: torch.device
    ) -> torch.Tensor | None:
        """Boolean [B or 1, K, N], on the device: which tokens of a conditioning's rows see which person; None: all see
        all. Made once for all blocks of a prediction that have the same size."""
        if self._everywhere:
            self.seen = True
            return None
        key = uuid, tuple(people), size, device
        if key not in self._masks:
            inside = torch.cat([tokens_inside(self._region(uuid, person), size) for person in people])[None]
            if self._faces is not None:
                inside = inside & torch.cat([self._own_face(uuid, person, size) for person in people], dim=1)
            self.seen = self.seen or bool(inside.any())
            self._masks[key] = inside.to(device)
        return self._masks[key]

    def _own_face(self, uuid: object, person: Person, size: tuple[int, int]) -> torch.Tensor:
        """Boolean [B or 1, 1, N]: a person's own face, as the person's own conditioning sees it, in the rows of any
        conditioning, whose area may be another."""
        owner, people = next((owner, people) for owner, people in self._people.items() if person in people)
        place = people.index(person)
        if self._areas.get(owner) == self._areas.get(uuid):
            return self._faces.inside(owner, size)[:, place : place + 1]
        h, w = self._area_of(owner, torch.zeros(1, *self._canvas)).shape[-2:]
        found = self._faces.inside(owner, (h, w))[:, place].view(-1, h, w)
        canvas = torch.zeros(len(found), *self._canvas)
        self._area_of(owner, canvas).copy_(found)
        return tokens_inside(self._area_of(uuid, canvas), size)[:, None]

    def _region(self, uuid: object, person: Person) -> torch.Tensor:
        """[1, h, w] of a person's region on a conditioning's area; all of it without a region."""
        if person.mask is None:
            return self._area_of(uuid, torch.ones(1, *self._canvas))
        region = person.mask.reshape(-1, *person.mask.shape[-2:])[:1].cpu()
        return self._area_of(uuid, shrink(region, self._canvas))

    def _area_of(self, uuid: object, canvas: torch.Tensor) -> torch.Tensor:
        """A conditioning's area of a [B, H, W] canvas, not copied; all of it without one."""
        h, w, y, x = self._areas.get(uuid) or (*self._canvas, 0, 0)
        return canvas[:, y : y + h, x : x + w]


def _text_lengths(conds: dict[str, list[dict]]) -> dict[object, int]:
    """How many tokens each conditioning's own text has, by uuid; the first of a uuid's copies counts."""
    lengths: dict[object, int] = {}
    for key in positive_keys(conds):
        for cond in conds[key]:
            text = cond.get("model_conds", {}).get("c_crossattn")
            if text is not None:
                lengths.setdefault(cond["uuid"], text.cond.shape[1])
    return lengths
