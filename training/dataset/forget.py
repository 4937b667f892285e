"""Taking pictures out again: of the shards, of the work that they came from, and of every later run."""

from __future__ import annotations

import os
import tarfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..files import write_whole
from . import ledger
from .folder import Folder, driver_lock
from .optout import OptOut
from .pack import ROWS, write_tar
from .reasons import OPTED_OUT

KNOWN = ("uid", "url", "license", "source", "attempt", "fetched_at")
"""All that a ledger keeps of a forgotten row."""


def forget(folder: Folder, lists: Sequence[str], take_over: bool = False) -> dict[str, int]:
    """Samples taken out of the shards and of the work. lists: files of addresses, hosts and sha256.

    Interrupted, the same call goes on. Other samples keep their names until the next `pack`.
    """
    folder.planned()
    opt_out = OptOut.of_files(lists)
    with driver_lock(folder, take_over):
        old = folder.opt_out.read_text(encoding="utf-8").splitlines() if folder.opt_out.is_file() else []
        new = [line.strip() for path in lists for line in Path(path).read_text(encoding="utf-8").splitlines()]
        lines = dict.fromkeys(filter(None, old + new))
        write_whole(folder.opt_out, "".join(f"{line}\n" for line in lines).encode())  # first: no run fetches them now
        return {"work": forget_work(folder, opt_out), "shards": forget_shards(folder, opt_out)}


def forget_work(folder: Folder, opt_out: OptOut) -> int:
    """Kept samples are overwritten where they lie; then their rows lose all that was learnt from the picture."""
    hits = 0
    for path in sorted(folder.work.glob("*/*.parquet")):
        entries = ledger.read(path)
        bad = [entry for entry in entries if entry["sha256"] and opt_out.holds(entry["url"], entry["sha256"])]
        if not bad:
            continue
        for entry in filter(lambda entry: entry["tar"], bad):
            blank(path.with_name(entry["tar"]), entry["offset"], entry["length"])
            hits += 1
        gone = {entry["uid"] for entry in bad}
        ledger.write(path, [_bare(entry) if entry["uid"] in gone else entry for entry in entries])
    return hits


def _bare(entry: dict) -> dict:
    return {key: entry[key] for key in KNOWN} | {"status": OPTED_OUT}


def blank(tar: Path, offset: int, length: int) -> None:
    """Zeros in place of a sample; the others are read by their offsets and stay where they are."""
    with open(tar, "r+b") as file:
        file.seek(offset)
        file.write(bytes(length))
        file.flush()
        os.fsync(file.fileno())


def forget_shards(folder: Folder, opt_out: OptOut) -> int:
    hits = 0
    for beside in sorted(folder.shards.glob("train-*.rows.parquet")):
        rows = ledger.read(beside)
        bad = {row["uid"] for row in rows if opt_out.holds(row["url"], row["sha256"])}
        if not bad:
            continue
        keys = {f"{row['number']:07d}" for row in rows if row["uid"] in bad}
        path = beside.with_name(beside.name.replace(".rows.parquet", ".tar"))
        write_tar(path, ((key, files) for key, files in samples(path) if key not in keys))
        ledger.write(beside, (row for row in rows if row["uid"] not in bad), ROWS)
        hits += len(bad)
    return hits


def samples(path: Path):
    """Key and files of each sample of a shard, in order."""
    grouped: dict[str, dict[str, bytes]] = defaultdict(dict)
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            key, _, extension = member.name.partition(".")
            if grouped and key not in grouped:
                yield grouped.popitem()
            grouped[key][extension] = archive.extractfile(member).read()
    yield from grouped.items()
