"""The cells of the table: one portrait for each method, person, prompt and number, its seed and where it is kept."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from ..training.files import digest, digest_of
from .protocol import Method, Person, Prompt

digest_of_photo = lru_cache(maxsize=None)(digest_of)


@dataclass(frozen=True)
class Cell:
    """number: of several portraits of one person and prompt."""

    method: Method
    person: Person
    prompt: Prompt
    number: int
    base_seed: int

    @property
    def text(self) -> str:
        """The prompt as judges see it."""
        return self.prompt.text.format(subject=self.person.subject)

    @property
    def text_for_method(self) -> str:
        return self.prompt.text.format(subject=self.method.subject_as.format(subject=self.person.subject))

    @property
    def seed(self) -> int:
        """The same for all methods; 32 bits, since some samplers' widgets take no more."""
        parts = f"{self.base_seed}\0{self.person.id}\0{self.prompt.id}\0{self.number}"
        return int.from_bytes(hashlib.sha256(parts.encode()).digest()[:4], "big")

    @cached_property
    def key(self) -> str:
        """Equal for equal pictures, as far as the request decides: another workflow, photograph or text is another
        cell."""
        method = json.dumps([self.method.bound.prompt, list(self.method.bound.told())], sort_keys=True)
        photo = digest_of_photo(self.person.photo) if "photo" in self.method.bound.places else ""
        return digest(method, photo, self.text_for_method, self.person.subject, str(self.seed))

    def file(self, out: Path) -> Path:
        name = f"{self.prompt.id}-{self.number}.{self.key}.png"
        return out / "pictures" / re.sub(r"[^\w.=-]+", "_", self.method.name) / self.person.id / name

    def about(self) -> dict:
        """For the records."""
        return {"key": self.key, "method": self.method.name, "person": self.person.id, "prompt": self.prompt.id,
                "number": self.number}  # fmt: skip


def cells(
    methods: Sequence[Method], people: Sequence[Person], prompts: Sequence[Prompt], images: int, seed: int, each: int
) -> list[Cell]:
    """Person by person, prompt by prompt, and in each all methods: half a run is paired. each: so many of the prompts a
    person, the next one going on where the last one stopped; 0 is all."""
    found = []
    for place, person in enumerate(people):
        chosen = prompts if not each else [prompts[(place * each + i) % len(prompts)] for i in range(each)]
        found += [
            Cell(method, person, prompt, number, seed)
            for prompt in chosen
            for number in range(images)
            for method in methods
        ]
    return found


def share(cells: Sequence[Cell], number: int, of: int) -> list[Cell]:
    """Part `number` (from 1) of `of`. All methods of a person and prompt stay together: half of the parts is paired."""
    groups: dict[tuple, int] = {}
    for cell in cells:
        groups.setdefault((cell.person.id, cell.prompt.id, cell.number), len(groups))
    return [cell for cell in cells if groups[cell.person.id, cell.prompt.id, cell.number] % of == number - 1]


class Records:
    """A file with a line of JSON for each record; nothing is ever changed in it, and a torn line is passed over."""

    def __init__(self, file: Path) -> None:
        self.file, self._lock = file, threading.Lock()

    def __iter__(self) -> Iterator[dict]:
        for line in self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else ():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record

    def add(self, record: dict) -> None:
        with self._lock:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as out:
                out.write("\n" + json.dumps(record))  # first: the line before may have been torn
