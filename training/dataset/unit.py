"""One unit of work: its rows are fetched and looked at; the kept ones go into a tar, all of them into the ledger.

Idempotent: any engine may run a unit twice, kill it in between, or run two attempts at once. An attempt writes a tar of
its own; the ledger, put last, names it. What is left of the others is swept later (folder.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import secrets
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from ..data.index import BROKEN_PICTURE, BadSample
from ..files import whole
from . import ledger
from .fetch import Fetcher
from .folder import Folder
from .optout import OptOut
from .reasons import CRASHED, KEPT, NO_CONNECTION, ONCE_MORE, OPTED_OUT
from .recipe import Recipe, read

FEWEST_LOST = 10
"""So many rows without a connection, at least, speak for a lost network and not for a few servers that have gone."""


class NetworkLost(OSError):
    """Most rows of a unit had no connection: that says nothing about them."""


def work(out: str, name: str, lost: float = 0.5) -> dict[str, int]:
    """Do the unit `name` of the data set in `out`, unless it is done; rows by status.

    lost: share of rows without a connection above which the unit stays undone (NetworkLost).
    """
    folder = Folder(out)
    if not folder.ledger(name).is_file():
        recipe = read(folder.recipe)
        lists = [*recipe.fetch.opt_out, *([folder.opt_out] if folder.opt_out.is_file() else [])]
        Attempt(folder, name, recipe, OptOut.of_files(lists)).run(lost)
    return dict(Counter(entry["status"] for entry in ledger.read(folder.ledger(name))))


@lru_cache(maxsize=1)
def looker(recipe: Recipe):
    """The process's models, loaded for its first unit."""
    import torch

    from .look import Look

    torch.set_num_threads(1)  # the engine has a process for each core
    look = Look(recipe)
    look.backend.detector.detect(torch.zeros(3, 64, 64))  # loads its networks, which no picture is charged for
    return look


class Journal:
    """Which row was in hand when an attempt died: its number is written before a decoder sees it, and again after."""

    def __init__(self, path: Path, attempt: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.attempt = path, attempt
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(self, sign: str, uid: int) -> None:
        os.write(self.file, f"{sign} {self.attempt} {uid}\n".encode())

    def deadly(self) -> set[int]:
        """Rows that were in hand when two attempts ended."""
        ends: Counter[int] = Counter()
        for sign, _, uid in (line.split() for line in self.path.read_text().splitlines() if line.count(" ") == 2):
            ends[int(uid)] += 1 if sign == "+" else -1
        return {uid for uid, count in ends.items() if count >= 2}

    def close(self) -> None:
        os.close(self.file)


class Shelf:
    """Samples in a tar, and where each lies in it."""

    def __init__(self, path: Path) -> None:
        self.file = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)

    def add(self, key: str, files: dict[str, bytes]) -> tuple[int, int]:
        """Offset and length of the sample's members with their headers."""
        start = self.file.offset
        for extension, content in files.items():
            member = tarfile.TarInfo(f"{key}.{extension}")
            member.size = len(content)
            self.file.addfile(member, io.BytesIO(content))
        return start, self.file.offset - start


def members(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Extension and content of each file of a sample that lay in a shelf."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        for member in archive:
            yield member.name.partition(".")[2], archive.extractfile(member).read()


class Attempt:
    """One try at a unit."""

    def __init__(self, folder: Folder, name: str, recipe: Recipe, opt_out: OptOut) -> None:
        self.folder, self.name, self.recipe, self.opt_out = folder, name, recipe, opt_out
        self.id = secrets.token_hex(4)
        self.tar = folder.tar(name, self.id)
        self.entries: list[dict] = []

    def run(self, lost: float) -> None:
        """Both halves; whatever ends it in between leaves the unit undone."""
        self.gather(lost)
        self.put()

    def gather(self, lost: float) -> None:
        """The tar. NetworkLost, or OSError where the disk is full."""
        rows = ledger.read(self.folder.unit(self.name))
        self.journal = Journal(self.folder.journal(self.name), self.id)
        self.deadly = self.journal.deadly()
        try:
            with whole(self.tar) as part:
                self.shelf = Shelf(part)
                try:
                    asyncio.run(self._everything(rows))
                finally:
                    self.shelf.file.close()
                silent = sum(entry["status"] == NO_CONNECTION for entry in self.entries)
                if silent >= FEWEST_LOST and silent > lost * len(rows):
                    raise NetworkLost(f"{silent} of {len(rows)} rows had no connection: is the network there?")
        finally:
            self.journal.close()

    def put(self) -> None:
        """The ledger, last."""
        ledger.write(self.folder.ledger(self.name), self.entries)
        self.journal.path.unlink(missing_ok=True)

    async def _everything(self, rows: list[dict]) -> None:
        began = time.thread_time()
        with ThreadPoolExecutor(1) as self.pool:
            async with Fetcher(self.recipe.fetch, self.opt_out) as self.fetcher:
                again = await self._crew(rows, last=False)
                await asyncio.sleep(max((pause for _, pause in again), default=0.0))
                await self._crew([row for row, _ in again], last=True)
        share = (time.thread_time() - began) * 1000 / len(rows)
        for entry in self.entries:
            entry["cpu_ms"] = entry.get("cpu_ms", 0.0) + share

    async def _crew(self, rows: list[dict], last: bool) -> list[tuple[dict, float]]:
        """Rows in flight side by side, each fetched and then looked at; those to ask for once more, with the pause.

        Whoever has fetched waits for the one thread that looks, and fetches nothing meanwhile: that is what keeps a
        fast network from filling the memory.
        """
        again: list[tuple[dict, float]] = []
        waiting = iter(rows)

        async def one() -> None:
            loop = asyncio.get_running_loop()
            for row in waiting:
                if row.get("path"):
                    await loop.run_in_executor(self.pool, self._see_file, row)
                    continue
                async with self.fetcher.get(row["url"]) as answer:
                    if answer.reason in ONCE_MORE and not last:
                        again.append((row, answer.pause))
                    elif answer.reason:
                        self._enter(row, {"status": answer.reason})
                    else:
                        await loop.run_in_executor(self.pool, self._see, row, answer.content)

        crew = [asyncio.ensure_future(one()) for _ in range(min(self.recipe.fetch.at_once, len(rows)))]
        try:
            await asyncio.gather(*crew)
        finally:
            for each in crew:
                each.cancel()
        return again

    def _see_file(self, row: dict) -> None:
        """A photograph of a folder, in the thread that looks."""
        try:
            content = Path(row["path"]).read_bytes()
        except FileNotFoundError:
            return self._enter(row, {"status": BROKEN_PICTURE})
        return self._see(row, content)

    def _see(self, row: dict, content: bytes) -> None:
        """In the thread that looks. OSError if the disk is full."""
        uid = row["uid"]
        fetched = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        if self.opt_out.holds(row["url"], fetched["sha256"]):
            return self._enter(row, {"status": OPTED_OUT})
        if uid in self.deadly:
            return self._enter(row, fetched | {"status": CRASHED})
        look = looker(self.recipe)
        self.journal.note("+", uid)
        began = time.thread_time()
        try:
            sample = look(row, content)
            result = sample.entry | {"status": KEPT}
        except BadSample as bad:
            sample, result = None, {"status": str(bad)}
        self.journal.note("-", uid)
        if sample:
            offset, length = self.shelf.add(f"{uid:020d}", sample.files)
            result |= {"tar": self.tar.name, "offset": offset, "length": length}
        spent = {"cpu_ms": (time.thread_time() - began) * 1000, "face_ms": look.face_seconds * 1000}
        return self._enter(row, fetched | result | spent)

    def _enter(self, row: dict, result: dict) -> None:
        self.entries.append(row | {"attempt": self.id, "fetched_at": round(time.time(), 1)} | result)
