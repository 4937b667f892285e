"""A data set for one attribute, biased on purpose: few people, one light, few places, and everybody wears it. Without a
bias there is no pollution to prevent, and no method could be better than another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .backgrounds import BACKGROUNDS
from .identity import identity
from .portrait import Portrait, render
from .shards import view_of
from .view import View


@dataclass(frozen=True)
class Tailored:
    """`pictures` of the people from `first` on, in turn. light, places: the only ones there are; none: any."""

    worn: tuple[str, ...]
    people: int = 8
    pictures: int = 192
    first: int = 0
    light: str = "evening"
    places: int = 5
    framing: str = "close"
    size: int = 256
    seed: int = 0

    @property
    def backgrounds(self) -> Sequence[str]:
        """Every so many of all there are."""
        known = list(BACKGROUNDS)
        return known[:: max(1, len(known) // self.places)][: self.places] if self.places else known

    def view(self, number: int) -> View:
        """Of the picture of this number."""
        person, index = self.first + number % self.people, 1 + number // self.people
        view = view_of(self.seed, person, index, self.framing)
        light = self.light or view.light
        place = self.backgrounds[number // self.people % len(self.backgrounds)] if self.places else view.background
        return replace(view, light=light, background=place, worn=self.worn)

    def __iter__(self) -> Iterator[tuple[str, Portrait]]:
        for number in range(self.pictures):
            person = identity(self.first + number % self.people, self.seed)
            yield f"{number:06d}", render(person, self.view(number), self.size)
