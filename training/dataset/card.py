"""What goes with a data set: card.md, funnel.json and histograms of its faces."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

from ..files import whole, write_whole
from ..settings import as_yaml
from .folder import Folder
from .ledger import query
from .recipe import Recipe
from .status import counts, funnel


def write_card(folder: Folder, recipe: Recipe, result: dict[str, int], chosen: Path) -> None:
    """result: of `pack`. chosen: the rows that are in the shards."""
    done, total, reasons = counts(folder)
    planned = folder.planned()
    funnels = {"plan": planned, "run": dict(reasons), "pack": result}
    write_whole(folder.root / "funnel.json", json.dumps(funnels, indent=1).encode())
    sources = query("SELECT source, count(*) FROM read_parquet(?) GROUP BY 1 ORDER BY 2 DESC", [str(chosen)])
    licences = query("SELECT license, count(*) FROM read_parquet(?) GROUP BY 1 ORDER BY 2 DESC", [str(chosen)])
    first, last = query("SELECT min(fetched_at), max(fetched_at) FROM read_parquet(?)", [str(chosen)])[0]
    dates = " to ".join(f"{datetime.fromtimestamp(day, timezone.utc):%Y-%m-%d}" for day in (first, last) if day)
    text = f"""# A data set of portraits

{result["samples"]:,} samples in {result["shards"]:,} shards, from {done:,} of {total:,} units, fetched {dates or "–"};
{result["copies"]:,} copies of others were left out. One face a picture, its box and mask, a caption with the noun of
the person.

Faces are personal data. Whoever made this set is responsible for it under the law that applies there: for a lawful
ground, for telling people, for their objections. Pictures belong to their owners; the licence below is what the source
said, unchecked. Do not publish the pictures. `run.py dataset forget LIST` takes out addresses, hosts and checksums.

## Sources
{_table(sources)}

## Licences, as told by the source
{_table((name or "not told", count) for name, count in licences)}

## Rows by result
```
{funnel(reasons)}
```

## Recipe
```yaml
{as_yaml(recipe)}```
"""
    write_whole(folder.root / "card.md", text.encode())
    histograms(folder.root / "histograms.png", chosen)


def _table(rows) -> str:
    return "\n".join(f"* {name}: {count:,}" for name, count in rows) or "* none"


def histograms(path: Path, chosen: Path) -> None:
    """The share of the picture that is the face's box, and the detector's score (the paper's Fig. 8)."""
    from matplotlib.figure import Figure

    rows = query(
        "SELECT (face_box[3] - face_box[1]) * (face_box[4] - face_box[2]) / (width * height), face_score "
        "FROM read_parquet(?)", [str(chosen)],
    )  # fmt: skip
    figure = Figure(figsize=(9, 3), layout="tight")
    titles = ("share of the picture in the face's box", "score of the face")
    for axis, values, title in zip(figure.subplots(1, 2), zip(*rows, strict=True), titles, strict=False):
        axis.hist(values, bins=40, range=(0, 1))
        axis.set_title(title)
    with whole(path) as part:
        figure.savefig(part, format="png")
