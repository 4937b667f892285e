"""Stage 4: which kept rows go into the shards. One picture of each: no two files alike, no near copies."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

from ..files import whole
from .folder import Folder
from .ledger import literal
from .optout import OptOut

BANDS = [0xFFFF << (16 * place) for place in range(4)]
NEAR = 2
"""Bits in which the hashes (pHash, 64 bits) of near copies differ, at most: two of the four bands are then equal."""


def choose(folder: Folder, opt_out: OptOut, target: Path) -> tuple[int, int]:
    """Write the chosen rows to a parquet file, numbered from 0 by uid; how many, and how many are copies.

    Of copies stays the one of the lowest uid.
    """
    import duckdb

    with duckdb.connect() as database:
        database.create_function("opted_out", opt_out.holds, ["VARCHAR", "VARCHAR"], "BOOLEAN")
        database.execute(
            "CREATE TABLE kept AS SELECT * FROM read_parquet($1) WHERE status = 'kept' AND NOT opted_out(url, sha256)",
            [folder.ledgers],
        )
        (kept,) = database.execute("SELECT count(*) FROM kept").fetchone()
        database.execute(
            "CREATE TABLE copies AS SELECT uid FROM (SELECT uid, row_number() OVER (PARTITION BY sha256 ORDER BY uid) "
            "AS place FROM kept) WHERE place > 1"
        )
        for one, other in combinations(BANDS, 2):
            mask = one | other
            database.execute(
                f"INSERT INTO copies SELECT DISTINCT later.uid FROM kept AS first JOIN kept AS later "
                f"ON first.phash & {mask}::UBIGINT = later.phash & {mask}::UBIGINT AND first.uid < later.uid "
                f"WHERE bit_count(xor(first.phash, later.phash)) <= {NEAR}"
            )
        with whole(target) as part:
            database.execute(
                "COPY (SELECT row_number() OVER (ORDER BY uid) - 1 AS number, * FROM kept "
                f"WHERE uid NOT IN (SELECT uid FROM copies) ORDER BY uid) TO {literal(part)} "
                "(FORMAT parquet, COMPRESSION zstd)"
            )
        (chosen,) = database.execute("SELECT count(*) FROM read_parquet(?)", [str(target)]).fetchone()
    return chosen, kept - chosen
