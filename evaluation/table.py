"""The table: means over people with 95% intervals, paired differences to one method, and what is missing."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .cells import Cell, Records
from .columns.column import Shown
from .intervals import DRAWS, Interval, difference_of, mean_of, text_of
from .score import Scores

PAPER = {
    "OmniPortrait": (80.24, 24.25, 73.08, 69.13, 86.80, 213.48),
    "without RB-Guidance": (81.05, 24.88, 66.10, 63.87, 85.51, 210.45),
    "PhotoMaker": (80.51, 23.97, 67.64, 62.68, 70.51, 236.93),
    "InstantID": (78.21, 22.26, 73.03, 68.35, 84.17, 221.62),
    "IP-Adapter-FaceID-Plus": (79.33, 23.93, 68.23, 64.19, 88.15, 211.15),
}
"""The paper's Tables 1 and 2: BLIP, CLIP-T, CLIP-I, SIM, IQA, FID."""
LEAST = 6
"""People from whom an interval is given: below, that all differ in one direction happens in over one case in twenty."""
ORDER = ("blip", "clip_t", "clip_i", "sim", "iqa", "fid")


NOTE = (
    "Means over people with 95% intervals, by resampling the people {draws:,} times; of fewer than {least} people the "
    "mean alone. A column that needs a face counts "
    "a portrait without one as 0, as the paper does, and stands a second time over portraits with a face alone."
)


@dataclass(frozen=True)
class Results:
    """rows: of each method, with the person, the prompt and the values; None where there is none. counts: judged,
    failed, not made, without a face. seconds: mean of a picture. sets: values of all of a method's portraits."""

    rows: Mapping[str, list[dict]]
    counts: Mapping[str, tuple[int, int, int, int]]
    seconds: Mapping[str, float | None]
    shown: Sequence[Shown]
    sets: Sequence[Shown]
    of_method: Mapping[str, Mapping[str, float | None]]
    absent: Sequence[str]


def results_of(cells: Sequence[Cell], scores: Scores, out: Path) -> Results:
    """With the paper's zeros: a column of the face counts a portrait without one as 0, and is shown a second time over
    portraits with a face alone."""
    shown = []
    for each in scores.shown:
        shown += (
            [each, replace(each, key=f"{each.key}, faces", title=f"{each.title}, faces only")]
            if each.of_face
            else [each]
        )
    runs = list(Records(out / "runs.jsonl"))
    failed = {run["key"] for run in runs if run.get("error")}
    took = {run["key"]: run["seconds"] for run in runs if "seconds" in run}
    rows: dict[str, list[dict]] = {}
    counts, seconds = {}, {}
    for method in dict.fromkeys(cell.method.name for cell in cells):
        own = [cell for cell in cells if cell.method.name == method]
        made = [cell for cell in own if cell.file(out).is_file() and scores.of(cell)]
        rows[method] = [row_of(cell, scores) for cell in made]
        missing = [cell for cell in own if not cell.file(out).is_file()]
        lost = sum(cell.key in failed for cell in missing)
        faceless = sum(row.get("face") == 0 for row in rows[method])
        counts[method] = len(made), lost, len(missing) - lost, faceless
        times = [took[cell.key] for cell in made if cell.key in took]
        seconds[method] = sum(times) / len(times) if times else None
    return Results(rows, counts, seconds, shown, scores.sets, scores.of_methods(cells), scores.absent)


def row_of(cell: Cell, scores: Scores) -> dict:
    values = scores.of(cell)
    row = {"person": cell.person.id, "prompt": (cell.prompt.id, cell.number)}
    for each in scores.shown:
        value = row[each.key] = values.get(each.key)
        if each.of_face:
            row[f"{each.key}, faces"] = value
            row[each.key] = 0.0 if values.get("face") == 0 else value
    return row


def markdown(results: Results, baseline: str, foot: Sequence[str]) -> str:
    """Values, differences to the baseline, what is missing."""
    means = {m: {s.key: mean_of(rows, s.key) for s in results.shown} for m, rows in results.rows.items()}
    others = [method for method in results.rows if method != baseline]
    differences = {
        m: {s.key: difference_of(results.rows[m], results.rows[baseline], s.key) for s in results.shown} for m in others
    }
    parts = ["## Values", "", values_table(results, means), ""]
    if others:
        parts += [
            f"## Differences to {baseline}", "",
            "On the same people, prompts and noise; pairs of which both were made. **Bold**: 0 is outside of the 95% "
            "interval, which happens by chance to one in twenty differences that are none.", "",
            interval_table(results.shown, differences, True), "",
        ]  # fmt: skip
    parts += ["## What was made", "", counts_table(results), ""]
    if results.absent:
        parts += ["Columns left out:", "", *(f"- {sentence}" for sentence in results.absent), ""]
    parts += [f"{NOTE.format(draws=DRAWS, least=LEAST)}", *(f"\n{line}" for line in foot)]
    return "\n".join(parts) + "\n"


def values_table(results: Results, means: Mapping[str, Mapping[str, Interval | None]]) -> str:
    lines = [["", *map(titled, results.shown), *map(titled, results.sets)]]
    for method, cells in means.items():
        sets = [told(of_set(results, method, s), s) for s in results.sets]
        lines.append([method, *(told(cells[s.key], s) for s in results.shown), *sets])
    shown = [s.key for s in (*results.shown, *results.sets)]
    if "clip_t" in shown or "sim" in shown:
        for name, numbers in PAPER.items():
            paper = dict(zip(ORDER, numbers, strict=True))
            lines.append([f"*{name} (paper)*", *(f"*{paper[key]:.2f}*" if key in paper else "" for key in shown)])
    return grid(lines)


def interval_table(shown: Sequence[Shown], rows: Mapping[str, Mapping[str, Interval | None]], signed: bool) -> str:
    lines = [["", *map(titled, shown)]]
    lines += [[m, *(told(cells[s.key], s, signed) for s in shown)] for m, cells in rows.items()]
    return grid(lines)


def counts_table(results: Results) -> str:
    lines = [["", "judged", "failed", "not made", "without a face", "seconds a picture"]]
    for method, counts in results.counts.items():
        seconds = results.seconds[method]
        lines.append([method, *map(str, counts), "–" if seconds is None else f"{seconds:.1f}"])
    return grid(lines)


def told(value: Interval | None, shown: Shown, signed: bool = False) -> str:
    """A mean and its interval, which too few people do not give: all of two or three often agree by chance."""
    if value is not None and value.people < LEAST:
        return f"{value.mean * shown.factor:{'+' if signed else ''}.{shown.digits}f}"
    return text_of(value, shown.factor, shown.digits, signed)


def titled(shown: Shown) -> str:
    return shown.title + {1: " ↑", -1: " ↓", 0: ""}[shown.better]


def of_set(results: Results, method: str, shown: Shown) -> Interval | None:
    """What a column of whole sets says; of no people where it has no interval."""
    values = results.of_method.get(method, {})
    value, low, high = (values.get(f"{shown.key}{end}") for end in ("", " low", " high"))
    if value is None:
        return None
    if low is None or high is None:
        return Interval(value, value, value, 0)
    return Interval(value, low, high, len({row["person"] for row in results.rows[method]}))


def grid(lines: Sequence[Sequence[str]]) -> str:
    head, *others = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *others))


def as_csv(results: Results) -> str:
    """One line a method and column: mean, low, high, people; the interval as in the table."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["method", "column", "mean", "low", "high", "people"])
    for method, rows in results.rows.items():
        found = [(s, mean_of(rows, s.key)) for s in results.shown]
        found += [(s, of_set(results, method, s)) for s in results.sets]
        for s, value in found:
            if value:
                mean, *bounds = (f"{each * s.factor:.6g}" for each in (value.mean, value.low, value.high))
                bounds = bounds if value.people >= LEAST else ["", ""]
                writer.writerow([method, s.title, mean, *bounds, value.people or ""])
    return out.getvalue()
