"""Stage 5: shards of the chosen samples, whole or not at all, with the rows of each beside it for `forget`."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from ..files import whole
from . import ledger
from .card import write_card
from .choose import choose
from .folder import Folder, driver_lock, sweep
from .ledger import query
from .optout import OptOut
from .recipe import read
from .unit import members

ROWS = {
    "number": "BIGINT", "uid": "UBIGINT", "url": "VARCHAR", "sha256": "VARCHAR", "license": "VARCHAR",
    "source": "VARCHAR",
}  # fmt: skip
"""What is known of each sample of a shard, so that it can be taken out again."""
NAMES = ", ".join(ROWS)


def pack(folder: Folder, size: int, take_over: bool = False) -> dict[str, int]:
    """Shards of `size` samples each of all that is kept so far; those that are right already stay as they are.

    Samples are numbered by uid, so a later pack of more units makes other shards.
    """
    folder.planned()
    if not any(done for _, done in folder.unit_names()):
        raise ValueError(f"No unit of {folder.root} is done yet: call `run.py dataset run --out {folder.root}` first.")
    with driver_lock(folder, take_over):
        sweep(folder)
        recipe = read(folder.recipe)
        lists = [*recipe.fetch.opt_out, *([folder.opt_out] if folder.opt_out.is_file() else [])]
        chosen = folder.shards / "chosen.parquet"
        count, copies = choose(folder, OptOut.of_files(lists), chosen)
        shards = -(-count // size)
        written = sum(pack_shard(folder, chosen, number, size) for number in range(shards))
        for old in folder.shards.glob("train-*"):
            if int(old.name[6:12]) >= shards:
                old.unlink()
        result = {"samples": count, "copies": copies, "shards": shards, "written": written}
        write_card(folder, recipe, result, chosen)
        chosen.unlink()
    return result


def shard(folder: Folder, number: int) -> tuple[Path, Path]:
    """A shard and its rows."""
    path = folder.shards / f"train-{number:06d}.tar"
    return path, path.with_suffix(".rows.parquet")


def pack_shard(folder: Folder, chosen: Path, number: int, size: int) -> bool:
    """Whether it had to be written."""
    path, beside = shard(folder, number)
    rows = query(
        f'SELECT {NAMES}, tar, "offset", length FROM read_parquet($1) WHERE number // $2 = $3 ORDER BY number',
        [str(chosen), size, number],
    )
    wanted = [row[: len(ROWS)] for row in rows]
    there = path.is_file() and beside.is_file()
    if there and query(f"SELECT {NAMES} FROM read_parquet($1)", [str(beside)]) == wanted:
        return False
    beside.unlink(missing_ok=True)  # a shard with its rows is a whole one
    write_tar(path, ((f"{row[0]:07d}", read_sample(folder, *row[len(ROWS) :])) for row in rows))
    ledger.write(beside, (dict(zip(ROWS, row, strict=True)) for row in wanted), ROWS)
    return True


def read_sample(folder: Folder, tar: str, offset: int, length: int) -> dict[str, bytes]:
    """The files of a kept sample, by extension."""
    with open(folder.work / tar[5:10] / tar, "rb") as file:
        file.seek(offset)
        return dict(members(file.read(length)))


def write_tar(path: Path, samples: Iterable[tuple[str, dict[str, bytes]]]) -> None:
    with whole(path) as part, tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key, files in samples:
            for extension, content in files.items():
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
