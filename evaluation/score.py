"""Portraits into numbers: one column after the other, so that one network is in memory at a time; kept as they come.

rows.jsonl has the numbers, columns.json which columns the last judging had: the table is made of both, without a
network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from ..training.files import digest, write_whole
from .cells import Cell, Records
from .columns.column import Column, NoFile, SetColumn, Shown
from .portrait import Album

Maker = Callable[[], Column]


class Scores:
    """The values of all cells that were judged. shown: the columns there are; absent: why the others are not; notes:
    what else is to be told."""

    def __init__(self, out: Path) -> None:
        self.out, self.records, self.file = out, Records(out / "rows.jsonl"), out / "columns.json"
        self.columns: list[tuple[str, tuple[Shown, ...]]] = []
        self.set_columns: list[tuple[str, tuple[Shown, ...]]] = []
        self.absent: list[str] = []
        self.notes: list[str] = []
        self._known = {(row["cell"], row["column"]): row["values"] for row in self.records if "cell" in row}

    @property
    def shown(self) -> list[Shown]:
        return [each for _, shown in self.columns for each in shown]

    @property
    def sets(self) -> list[Shown]:
        return [each for _, shown in self.set_columns for each in shown]

    def judge(self, makers: Iterable[Maker], cells: Sequence[Cell], album: Album) -> None:
        """Fill in what is missing for every cell that has a picture."""
        made = {cell.key: cell for cell in cells if cell.file(self.out).is_file()}
        for maker in makers:
            if (column := self._made(maker)) is None:
                continue
            self.columns.append((column.key, column.shown))
            todo = [cell for key, cell in made.items() if (key, column.key) not in self._known]
            for number, cell in enumerate(todo, 1):
                found = dict(column(cell, album.open(cell.file(self.out)), album))
                self._keep(cell.key, column.key, found)
                if number % 100 == 0 or number == len(todo):
                    print(f"{column.shown[0].title} …: {number}/{len(todo)}", flush=True)

    def judge_sets(self, makers: Iterable[Callable[[], SetColumn]], cells: Sequence[Cell]) -> None:
        """The columns that look at all portraits of a method."""
        groups = self._groups(cells)
        for maker in makers:
            if (column := self._made(maker)) is None:
                continue
            self.set_columns.append((column.key, column.shown))
            for group in groups.values():
                key = key_of(group)
                if (key, column.key) not in self._known:
                    files, people = [cell.file(self.out) for cell in group], [cell.person.id for cell in group]
                    self._keep(key, column.key, dict(column(files, people)))

    def _groups(self, cells: Sequence[Cell]) -> dict[str, list[Cell]]:
        """The cells of each method that have a picture."""
        groups: dict[str, list[Cell]] = {}
        for cell in cells:
            if cell.file(self.out).is_file():
                groups.setdefault(cell.method.name, []).append(cell)
        return groups

    def of(self, cell: Cell) -> dict[str, float | None] | None:
        """What all columns say of a portrait; None where one has not judged it."""
        return self._all(cell.key, self.columns)

    def of_methods(self, cells: Sequence[Cell]) -> dict[str, dict[str, float | None]]:
        """What the columns of whole sets say of each method, as far as it is judged as it is now."""
        found = {method: self._all(key_of(group), self.set_columns) for method, group in self._groups(cells).items()}
        return {method: values for method, values in found.items() if values}

    def _all(self, key: str, columns: Sequence[tuple[str, tuple[Shown, ...]]]) -> dict[str, float | None] | None:
        if not columns or any((key, column) not in self._known for column, _ in columns):
            return None
        return {name: value for column, _ in columns for name, value in self._known[key, column].items()}

    def save(self) -> None:
        """Which columns there are, for a table without judging again."""
        told = {name: [[key, [asdict(each) for each in shown]] for key, shown in columns]
                for name, columns in (("columns", self.columns), ("sets", self.set_columns))}  # fmt: skip
        write_whole(self.file, json.dumps(told | {"absent": self.absent, "notes": self.notes}, indent=1).encode())

    def recall(self) -> None:
        """The columns of the last judging. ValueError where there was none."""
        if not self.file.is_file():
            raise ValueError(f"nothing is judged in {self.out} yet: call the same with `score` first.")
        told = json.loads(self.file.read_text(encoding="utf-8"))
        self.columns, self.set_columns = (
            [(key, tuple(Shown(**each) for each in shown)) for key, shown in told[name]] for name in ("columns", "sets")
        )
        self.absent, self.notes = told["absent"], told["notes"]

    def _made(self, maker: Callable):
        try:
            return maker()
        except NoFile as missing:
            self.absent.append(str(missing))
        except ImportError as missing:
            self.absent.append(
                f"{missing.name or missing} is not installed: start the command by run.py without --here."
            )
        return None

    def _keep(self, cell: str, column: str, values: dict[str, float | None]) -> None:
        self._known[cell, column] = values
        self.records.add({"cell": cell, "column": column, "values": values})


def key_of(cells: Sequence[Cell]) -> str:
    """Of a set of portraits."""
    return digest(*(cell.key for cell in cells))
