"""Stages 1 and 2: from files of metadata to units, by DuckDB. Nothing is downloaded, and no row enters Python.

Each file of metadata becomes one of the rows that pass (`select_rows`), sorted by bucket; a bucket becomes units
(`cut_bucket`), one row an address. The number of a row is a hash of its address, so units are random samples of the
whole and the pictures of one host are spread over all of them.
"""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...sampling.words import SUBJECTS
from ..data.folder import READABLE, LeftOut, list_photos
from ..files import digest, whole, write_whole
from ..settings import as_yaml
from .folder import Folder, driver_lock
from .ledger import literal
from .reasons import CHILD, NO_NOUN
from .recipe import Recipe, difference

CHILDREN = ("girl", "boy", "child", "kid", "teenager")
MORE_CHILDREN = ("baby", "toddler", "infant", "girls", "boys", "children", "kids", "teenagers", "babies", "toddlers")
"""Words that name a child and are no subjects."""
SELECTED = "selected"
OURS = ("path", "subject", "identity")
"""Columns that only a folder of photographs has."""
SUFFIXES = (".parquet", ".csv", ".jsonl")
BUCKET_ROWS = 1_000_000
MOST_BUCKETS = 65536


def subjects(recipe: Recipe) -> tuple[str, ...]:
    """Nouns that may stand for the person."""
    return SUBJECTS if recipe.nouns == "all" else tuple(word for word in SUBJECTS if word not in CHILDREN)


def named(words: Sequence[str]) -> str:
    """A regular expression for any of the words."""
    return r"\b(" + "|".join(words) + r")\b"


def connect(*folders: Path):
    """A DuckDB that reads and writes under these folders alone, and loads no extension."""
    import duckdb

    database = duckdb.connect(config={"autoinstall_known_extensions": False, "autoload_known_extensions": False})
    places = ", ".join(literal(place) for place in folders)
    database.execute(f"SET temp_directory = {literal(folders[-1] / 'spill')}")
    database.execute(f"SET allowed_directories = [{places}]")
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")
    return database


def metadata_files(names: Sequence[str], folder: Folder, people: bool = False) -> list[Path]:
    """Files of metadata of files, folders and globs, in order. ValueError for a name that gives none.

    A folder of photographs gives the file that tells of them. people: each of its subfolders is one person.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir() and any(each.suffix.lower() in READABLE for each in path.rglob("*")):
            found.append(list_photographs(path.resolve(), folder, people))
            continue
        matches = sorted(path.rglob("*")) if path.is_dir() else [Path(each) for each in sorted(glob.glob(str(path)))]
        matches = [match for match in matches if match.suffix in SUFFIXES]
        if not matches:
            raise ValueError(
                f"There is no metadata at {name}: give parquet, CSV or JSON-lines files, or a folder of photographs."
            )
        found += (match.resolve() for match in matches)
    return list(dict.fromkeys(found))


def list_photographs(root: Path, folder: Folder, people: bool) -> Path:
    """The photographs of a folder as metadata: url, text, and what else is known of them."""
    target = folder.photographs / f"{root.name[:60]}-{digest(str(root))[:8]}.jsonl"
    lines = (
        {"url": photo.path.as_uri(), "text": photo.caption or "", "path": str(photo.path), "subject": photo.subject,
         "identity": photo.identity or None}
        for photo in list_photos(root, people, LeftOut())
    )  # fmt: skip
    write_whole(target, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return target


def plan(folder: Folder, names: Sequence[str], recipe: Recipe, people: bool = False) -> dict:
    """Make the units, or go on making them; what plan.json says. ValueError for another recipe or other metadata."""
    files = metadata_files(names, folder, people)
    text, inputs = as_yaml(recipe), [[str(file), file.stat().st_size] for file in files]
    if folder.plan.is_file():
        known = folder.planned()
        if line := difference(folder.recipe.read_text(encoding="utf-8"), text):
            raise ValueError(f"{folder.root} was planned by another recipe ({line}): choose another --out.")
        if known["inputs"] != inputs:
            raise ValueError(f"{folder.root} was planned from other metadata: choose another --out.")
        return known
    with driver_lock(folder):
        check_same_recipe(folder, text)
        write_whole(folder.recipe, text.encode())
        database = connect(*sorted({file.parent for file in files}), folder.root)
        total = sum(_count(database, file) for file in files)
        buckets = min(MOST_BUCKETS, -(-total // BUCKET_ROWS)) or 1
        funnel = Counter()
        for file in files:
            funnel += select_rows(database, file, folder, recipe, buckets)
        units = rows = 0
        for bucket in range(buckets):
            made, unique = cut_bucket(database, bucket, folder, recipe)
            units, rows = units + made, rows + unique
        planned = {"inputs": inputs, "read": total, **funnel, "rows": rows, "units": units, "buckets": buckets}
        write_whole(folder.plan, json.dumps(planned, indent=1).encode())
    return planned


def check_same_recipe(folder: Folder, text: str) -> None:
    """ValueError where an interrupted plan of another recipe has begun here."""
    if folder.recipe.is_file() and (line := difference(folder.recipe.read_text(encoding="utf-8"), text)):
        raise ValueError(f"{folder.root} was planned by another recipe ({line}): choose another --out.")


def select_rows(database, file: Path, folder: Folder, recipe: Recipe, buckets: int) -> Counter[str]:
    """Stage 1: the rows of one file that pass, as uid, url, text, license, source, bucket and OURS; the others by
    reason. Only a file of our own may name paths: web metadata with such a column would read this machine's files."""
    target = folder.meta / f"{file.stem[:60]}-{digest(str(file))[:8]}.parquet"
    counts = target.with_suffix(".json")
    if counts.is_file():
        return Counter(json.loads(counts.read_text(encoding="utf-8")))
    check_columns(database, file, recipe)
    columns, ours = recipe.columns, file.parent == folder.photographs
    ruling = verdict(recipe, ours)
    more = ", ".join(f"CAST({name if ours else 'NULL'} AS VARCHAR) AS {name}" for name in OURS)
    rows = f"FROM {literal(file)} WHERE {_name(columns.url)} IS NOT NULL"
    licence = f"CAST({_name(columns.license)} AS VARCHAR)" if columns.license else "''"
    row = f"""md5_number_lower({_name(columns.url)}) AS uid, {_name(columns.url)} AS url,
        coalesce({_name(columns.text)}, '') AS text, {licence} AS license, {literal(file.stem)} AS source,
        CAST(((uid >> 48) * {buckets}) >> 16 AS INTEGER) AS bucket, {more}"""
    try:
        found = database.execute(f"SELECT {ruling} AS verdict, count(*) {rows} GROUP BY 1").fetchall()
        with whole(target) as part:
            database.execute(
                f"COPY (SELECT {row} {rows} AND ({ruling}) = {literal(SELECTED)} ORDER BY bucket) "
                f"TO {literal(part)} (FORMAT parquet, COMPRESSION zstd)"
            )
    except Exception as error:
        raise ValueError(f"DuckDB cannot select from {file}: {str(error).splitlines()[0]}") from error
    write_whole(counts, json.dumps(dict(found)).encode())
    return Counter(dict(found))


def check_columns(database, file: Path, recipe: Recipe) -> None:
    """ValueError where the recipe names a column that is not there."""
    columns = recipe.columns
    there = [name for name, *_ in database.execute(f"DESCRIBE SELECT * FROM {literal(file)}").fetchall()]
    for name in filter(None, (columns.url, columns.text, columns.license, columns.unsafe)):
        if name.lower() not in map(str.lower, there):
            raise ValueError(f"{file} has no column {name}, but {', '.join(there)}: set `columns` in the recipe.")


def verdict(recipe: Recipe, ours: bool) -> str:
    """SQL: what becomes of a row of metadata. A caption model writes other captions, so then these decide nothing.

    ours: the row is a photograph's, whose subject may be told.
    """
    text, unsafe = _name(recipe.columns.text), recipe.columns.unsafe
    steps = [(f"NOT coalesce(({recipe.where or 'true'}), false)", "filtered out by `where`")]
    if unsafe:
        steps.append((f"coalesce({_name(unsafe)}, 0) >= {recipe.unsafe!r}", "unsafe"))
    if recipe.nouns == "adults":
        steps.append((f"regexp_matches({text}, {literal(named(CHILDREN + MORE_CHILDREN))}, 'i')", CHILD))
    if not recipe.caption.model:
        noun = f"coalesce(regexp_matches({text}, {literal(named(subjects(recipe)))}, 'i'), false)"
        steps.append((f"NOT ({noun}{' OR subject IS NOT NULL' if ours else ''})", NO_NOUN))
    cases = " ".join(f"WHEN {condition} THEN {literal(reason)}" for condition, reason in steps)
    return f"CASE {cases} ELSE {literal(SELECTED)} END"


def cut_bucket(database, bucket: int, folder: Folder, recipe: Recipe) -> tuple[int, int]:
    """Stage 2: a bucket's units, and how many there are, with how many rows.

    Of the rows of one address stays the one whose caption holds a noun, then the longest, then the first by text.
    """
    done = folder.bucket(bucket) / "done.json"
    if done.is_file():
        return tuple(json.loads(done.read_text(encoding="utf-8")))
    noun = f"regexp_matches(text, {literal(named(subjects(recipe)))}, 'i')"
    database.execute(f"""CREATE OR REPLACE TEMP TABLE cut AS
        SELECT * EXCLUDE (place, bucket), (row_number() OVER (ORDER BY uid) - 1) // {recipe.unit} AS unit FROM (
            SELECT *, row_number() OVER (PARTITION BY uid ORDER BY {noun} DESC, length(text) DESC, text, source)
            AS place FROM {literal(folder.meta / "*.parquet")} WHERE bucket = {bucket}
        ) WHERE place = 1 ORDER BY uid""")
    (rows,) = database.execute("SELECT count(*) FROM cut").fetchone()
    units = -(-rows // recipe.unit)
    for number in range(units):
        with whole(folder.unit(f"unit-{bucket:05d}-{number:05d}")) as part:
            database.execute(
                f"COPY (SELECT * EXCLUDE unit FROM cut WHERE unit = {number} ORDER BY uid) TO {literal(part)} "
                "(FORMAT parquet, COMPRESSION zstd)"
            )
    write_whole(done, json.dumps([units, rows]).encode())
    return units, rows


def _count(database, file: Path) -> int:
    """Rows of a file; of parquet, as its head says."""
    try:
        return database.execute(f"SELECT count(*) FROM {literal(file)}").fetchone()[0]
    except Exception as error:
        raise ValueError(f"{file} cannot be read as {file.suffix[1:]}: {str(error).splitlines()[0]}") from error


def _name(value: str) -> str:
    """An identifier of SQL."""
    return '"' + value.replace('"', '""') + '"'
