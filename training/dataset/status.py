"""How far a data set is: reads only, also while it is worked on."""

from __future__ import annotations

from collections import Counter

from .folder import Folder
from .ledger import query
from .reasons import KEPT


def counts(folder: Folder) -> tuple[int, int, Counter[str]]:
    """Units done, units in all, and rows by status."""
    done = total = 0
    for _, there in folder.unit_names():
        done, total = done + there, total + 1
    rows = query("SELECT status, count(*) FROM read_parquet(?) GROUP BY 1", [folder.ledgers]) if done else []
    return done, total, Counter(dict(rows))


def funnel(reasons: Counter[str]) -> str:
    """Rows by status, the kept ones first, then the most frequent."""
    order = sorted(reasons.items(), key=lambda item: (item[0] != KEPT, -item[1], item[0]))
    return "\n".join(f"{count:12,}  {100 * count / reasons.total():5.1f} %  {reason}" for reason, count in order)


def report(folder: Folder) -> str:
    folder.planned()
    done, total, reasons = counts(folder)
    lines = [f"{done:,} of {total:,} units are done."]
    if done:
        lines.append(funnel(reasons))
        first, last, cpu, face = query(
            "SELECT min(fetched_at), max(fetched_at), avg(cpu_ms), avg(face_ms) FROM read_parquet(?)", [folder.ledgers]
        )[0]
        if last > first:
            lines.append(f"{reasons.total() / (last - first):.1f} rows a second from the first to the last.")
        lines.append(f"{cpu:.1f} ms of a core a row; the face detector {face or 0:.1f} ms a picture.")
    return "\n".join(lines)
