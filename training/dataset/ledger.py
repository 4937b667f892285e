"""A unit's ledger: every row of the unit once, kept or with its reason. Written last, as a whole: the unit is done when
it is there, and what it says of its tar is all that counts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..files import whole

COLUMNS = {
    "uid": "UBIGINT", "url": "VARCHAR", "text": "VARCHAR", "license": "VARCHAR", "source": "VARCHAR",
    "status": "VARCHAR", "sha256": "VARCHAR", "phash": "UBIGINT", "bytes": "INTEGER",
    "width": "INTEGER", "height": "INTEGER", "face_box": "FLOAT[]", "face_score": "FLOAT", "person_box": "FLOAT[]",
    "caption": "VARCHAR", "subject": "VARCHAR", "fetched_at": "DOUBLE", "cpu_ms": "FLOAT", "face_ms": "FLOAT",
    "attempt": "VARCHAR", "tar": "VARCHAR", "offset": "BIGINT", "length": "BIGINT",
}  # fmt: skip
"""width, height: of the sample. bytes, sha256: of the file as fetched. cpu_ms: of one core, of which the face detector
took face_ms. tar, offset, length: where the sample's members lie, with their headers."""


def read(path: Path) -> list[dict]:
    """The rows of a ledger, or of a unit as it was planned."""
    return _dictionaries("SELECT * FROM read_parquet(?) ORDER BY uid", [str(path)])


def write(path: Path, entries: Iterable[dict], columns: dict[str, str] = COLUMNS) -> None:
    """Rows, ordered by uid, as a parquet file of these columns (name to DuckDB's type); what an entry lacks is null."""
    types = ", ".join(f"'{name}': '{kind}'" for name, kind in columns.items())
    with whole(path) as part:
        lines = part.with_name(part.name.removesuffix(".part") + ".lines.part")
        try:
            with open(lines, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in entries)
            query(
                f"COPY (SELECT * FROM read_json($1, format = 'newline_delimited', columns = {{{types}}}) ORDER BY uid) "
                f"TO {literal(part)} (FORMAT parquet, COMPRESSION zstd)", [str(lines)],
            )  # fmt: skip
        finally:
            lines.unlink(missing_ok=True)


def literal(value: object) -> str:
    """A text in SQL, where no parameter is taken."""
    return "'" + str(value).replace("'", "''") + "'"


def query(sql: str, parameters: Sequence[object] = ()) -> list[tuple]:
    """Rows of a query of our own over files of our own."""
    import duckdb

    with duckdb.connect() as database:
        return database.execute(sql, list(parameters)).fetchall()


def _dictionaries(sql: str, parameters: list) -> list[dict]:
    import duckdb

    with duckdb.connect() as database:
        result = database.execute(sql, parameters)
        names = [column[0] for column in result.description]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
