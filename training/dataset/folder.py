"""The data set's folder: where everything lies, how a file appears as a whole, and the lock of the one driver.

recipe.yaml, plan.json                 what was planned
photographs/*.jsonl                    where a folder of photographs was given: what is in it
meta/*.parquet                         selected rows of each file of metadata, by bucket
units/00012/unit-00012-00003.parquet   rows of one unit
work/00012/unit-00012-00003.parquet    its ledger: the unit is done when this is there
work/00012/unit-00012-00003-9f3a61c2.tar   kept samples of the attempt that the ledger names
shards/train-000000.tar, .rows.parquet
opt_out.txt                            what `forget` was told
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


class Folder:
    """Names of the files under a data set's root."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self.recipe, self.plan = self.root / "recipe.yaml", self.root / "plan.json"
        self.photographs, self.meta, self.units = (self.root / name for name in ("photographs", "meta", "units"))
        self.work, self.shards = self.root / "work", self.root / "shards"
        self.opt_out, self.lock = self.root / "opt_out.txt", self.root / "lock"

    def bucket(self, number: int) -> Path:
        return self.units / f"{number:05d}"

    def unit(self, name: str) -> Path:
        """Rows of the unit `unit-BBBBB-NNNNN`."""
        return self.units / name[5:10] / f"{name}.parquet"

    def ledger(self, name: str) -> Path:
        return self.work / name[5:10] / f"{name}.parquet"

    def journal(self, name: str) -> Path:
        return self.work / name[5:10] / f"{name}.hand"

    def tar(self, name: str, attempt: str) -> Path:
        return self.work / name[5:10] / f"{name}-{attempt}.tar"

    def unit_names(self) -> Iterator[tuple[str, bool]]:
        """Every unit in order and whether it is done; the names of one bucket at a time in memory."""
        for bucket in sorted(self.units.iterdir()) if self.units.is_dir() else []:
            place = self.work / bucket.name
            done = set(os.listdir(place)) if place.is_dir() else set()
            for file in sorted(os.listdir(bucket)):
                if file.endswith(".parquet"):
                    yield file.removesuffix(".parquet"), file in done

    @property
    def ledgers(self) -> str:
        """A glob of all ledgers, for DuckDB."""
        return str(self.work / "*" / "*.parquet")

    def planned(self) -> dict:
        """plan.json. ValueError where nothing is planned."""
        if not self.plan.is_file():
            raise ValueError(
                f"Nothing is planned in {self.root}: call `run.py dataset plan META --out {self.root}` first."
            )
        return json.loads(self.plan.read_text(encoding="utf-8"))


@contextlib.contextmanager
def driver_lock(folder: Folder, take_over: bool = False) -> Iterator[None]:
    """One driver at a time. SystemExit names the other one; one that has died on this machine is no obstacle.

    take_over: go on although the lock's driver ran on another machine, where this one cannot see whether it lives.
    """
    folder.root.mkdir(parents=True, exist_ok=True)
    mine = {"host": socket.gethostname(), "pid": os.getpid(), "since": _since(os.getpid())}
    while True:
        try:
            with open(folder.lock, "x", encoding="utf-8") as file:
                json.dump(mine, file)
            break
        except FileExistsError:
            other = _held_by(folder.lock)
            if other and not take_over and _alive(other):
                raise SystemExit(
                    f"{folder.root} is in use by process {other['pid']} on {other['host']}: wait for it, or, if that "
                    "has died, add --take-over."
                ) from None
            folder.lock.unlink(missing_ok=True)
            take_over = False
    try:
        yield
    finally:
        if _held_by(folder.lock) == mine:
            folder.lock.unlink(missing_ok=True)


def _held_by(lock: Path) -> dict | None:
    try:
        return json.loads(lock.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _alive(driver: dict) -> bool:
    """Whether it may be running: always for another machine's."""
    return driver["host"] != socket.gethostname() or _since(driver["pid"]) == driver["since"]


def _since(pid: int) -> float | None:
    """When a process of this machine began, which tells it from a later one of its number. None: it is not there."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def sweep(folder: Folder) -> int:
    """Delete what dead attempts left: parts, and tars that no ledger names. Only for the holder of the lock.

    A ledger is opened only where there is a choice: the attempt that a ledger is of has left a tar, even an empty one.
    """
    count = 0
    for bucket in sorted(folder.work.iterdir()) if folder.work.is_dir() else []:
        names = os.listdir(bucket)
        ledgers = {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}
        tars = Counter(unit_of(name) for name in names if name.endswith(".tar"))
        named = {tar for unit in ledgers if tars[unit] > 1 for tar in tars_named(bucket / f"{unit}.parquet")}
        for name in names:
            left = name.endswith(".tar") and not (
                unit_of(name) in ledgers and (tars[unit_of(name)] == 1 or name in named)
            )
            if left or name.endswith(".part"):
                (bucket / name).unlink(missing_ok=True)
                count += 1
    return count


def unit_of(tar: str) -> str:
    """The unit of an attempt's tar."""
    return tar.rpartition("-")[0]


def tars_named(ledger: Path) -> list[str]:
    import duckdb

    rows = duckdb.execute("SELECT DISTINCT tar FROM read_parquet(?) WHERE tar IS NOT NULL", [str(ledger)])
    return [tar for (tar,) in rows.fetchall()]
