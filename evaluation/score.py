"""Portraits into numbers: one column after the other, so that one network is in memory at a time; kept as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..training.files import digest
from .cells import Cell, Records
from .columns.column import Column, NoFile, SetColumn, Shown
from .portrait import Album

Maker = Callable[[], Column]


class Scores:
    """The values of all cells that were judged. shown: the columns there are; absent: why the others are not."""

    def __init__(self, out: Path) -> None:
        self.out, self.records = out, Records(out / "rows.jsonl")
        self.shown: list[Shown] = []
        self.sets: list[Shown] = []
        self.absent: list[str] = []
        self.values: dict[str, dict[str, float | None]] = {}
        self.of_method: dict[str, dict[str, float | None]] = {}
        self._known = {(row["cell"], row["column"]): row["values"] for row in self.records if "cell" in row}

    def judge(self, makers: Iterable[Maker], cells: Sequence[Cell], album: Album) -> None:
        """Fill in what is missing for every cell that has a picture."""
        made = [cell for cell in cells if cell.file(self.out).is_file()]
        for maker in makers:
            if (column := self._made(maker)) is None:
                continue
            self.shown += column.shown
            todo = [cell for cell in made if (cell.key, column.key) not in self._known]
            for number, cell in enumerate(todo, 1):
                found = dict(column(cell, album.open(cell.file(self.out)), album))
                self._keep(cell.key, column.key, found)
                if number % 100 == 0 or number == len(todo):
                    print(f"{column.shown[0].title} …: {number}/{len(todo)}", flush=True)
            for cell in made:
                self.values.setdefault(cell.key, {}).update(self._known[cell.key, column.key])

    def judge_sets(self, makers: Iterable[Callable[[], SetColumn]], cells: Sequence[Cell]) -> None:
        """The columns that look at all portraits of a method."""
        groups: dict[str, list[Cell]] = {}
        for cell in cells:
            if cell.file(self.out).is_file():
                groups.setdefault(cell.method.name, []).append(cell)
        for maker in makers:
            if (column := self._made(maker)) is None:
                continue
            self.sets += column.shown
            for method, group in groups.items():
                key = digest(*(cell.key for cell in group))
                if (key, column.key) not in self._known:
                    self._keep(key, column.key, dict(column([cell.file(self.out) for cell in group])))
                self.of_method.setdefault(method, {}).update(self._known[key, column.key])

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
