"""The table of SPF-Portrait's rows for people, and the trade-off as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...evaluation.intervals import Interval, bootstrap, text_of
from .campaign import markdown
from .spf_runs import NAIVE, OURS

RESPONSE = {"shown": ("response, %", 100), "clip_t": ("CLIP-T", 1), "words": ("base text's words, %", 100)}
PRESERVED = {
    "outside": ("LPIPS outside", 1), "whole": ("LPIPS", 1), "id": ("ID", 1), "clip_i": ("CLIP-I", 1),
    "segments": ("Seg-Cons", 100), "face": ("face found, %", 100),
}  # fmt: skip
"""Column: title and factor."""
HEAD = """# SPF-Portrait in the portrait world

Made by `{command}`; do not edit. {count} prompts; {attributes}; {seeds} training(s) of each row.

For each prompt one noise and one sampler: the original model on the base text, the row's model on the **complete
text** (base text and target) and on the **base text alone**. Preservation compares either picture with the original's,
pair by pair; intervals of 95% by resampling the prompts. The paper's measures have no free weights here, so others
stand in for them:

| paper | here |
|---|---|
| FID, customised and original pictures | Fréchet distance of the segmenter's deepest features, from 200 prompts on |
| LPIPS | distance of the segmenter's features; *outside*: without the attribute and two cells around it |
| ID | 1 − distance / 1.2 of dlib's embedding, where both pictures have a face |
| CLIP-I, CLIP-T | cosines of small towers that read latents |
| Seg-Cons | overlap of the segmenter's classes but hair and the attribute, × 100 |
| CLIP-T | *response*: the share of pictures in which the segmenter finds the attribute on over 2% of the picture |
| HPSv2, MPS | none; in their place whether a face is found, and how many of the base text's words are still shown |
"""


def page(
    command: str, results: Mapping[str, Sequence[Mapping]], distances: Mapping[str, float | None],
    seconds: Mapping[str, Mapping[str, float]],
) -> list[str]:  # fmt: skip
    """Lines of Markdown."""
    some = [row for rows in results.values() for row in rows]
    lines = [HEAD.format(
        command=command, count=len({row["prompt"] for row in some}), seeds=1 + max(row["seed"] for row in some),
        attributes=", ".join(sorted({row["attribute"] for row in some})),
    )]  # fmt: skip
    lines += ["## Complete text", "", complete_table(results, distances), ""]
    lines += ["## Base text alone", "", base_table(results), ""]
    for other in (NAIVE, OURS):
        if other in results and len(results) > 2:
            lines += [f"## Differences to {other}", "", "Pair by pair; **bold** where 0 is outside.", "",
                      differences(results, other), ""]  # fmt: skip
    if seconds:
        told = (f"{name}: " + ", ".join(f"{stage} {value:.2f} s" for stage, value in stages.items())
                for name, stages in seconds.items())  # fmt: skip
        lines += ["## Time", "", "A training step (median): " + "; ".join(told) + ".", ""]
    return lines


def over_prompts(rows: Sequence[Mapping], column: str, text: str) -> Interval | None:
    """A column's mean over the prompts, of attributes and trainings first."""
    each: dict[int, list[float]] = {}
    for row in rows:
        if row["text"] == text and row[column] is not None:
            each.setdefault(row["prompt"], []).append(row[column])
    return bootstrap([float(np.mean(values)) for values in each.values()])


def complete_table(results: Mapping[str, Sequence[Mapping]], distances: Mapping[str, float | None]) -> str:
    columns = RESPONSE | PRESERVED
    lines = [["", *(title for title, _ in columns.values()), "FID"]]
    for name, rows in results.items():
        cells = [_cell(over_prompts(rows, column, "complete"), factor) for column, (_, factor) in columns.items()]
        distance = distances.get(name)
        lines.append([name, *cells, "–" if distance is None else f"{distance:.2f}"])
    return markdown(lines)


def base_table(results: Mapping[str, Sequence[Mapping]]) -> str:
    lines = [["", "false response, %", *(title for title, _ in PRESERVED.values())]]
    for name, rows in results.items():
        cells = [_cell(over_prompts(rows, column, "base"), factor) for column, (_, factor) in PRESERVED.items()]
        lines.append([name, _cell(over_prompts(rows, "shown", "base"), 100), *cells])
    return markdown(lines)


def differences(results: Mapping[str, Sequence[Mapping]], other: str) -> str:
    columns = {"shown": ("response, %", 100)} | {name: PRESERVED[name] for name in ("outside", "id", "segments")}
    lines = [["", *(title for title, _ in columns.values()), "false response, %"]]
    for name, rows in results.items():
        if name != other:
            cells = [_cell(paired(rows, results[other], column, "complete"), factor, True)
                     for column, (_, factor) in columns.items()]  # fmt: skip
            lines.append([name, *cells, _cell(paired(rows, results[other], "shown", "base"), 100, True)])
    return markdown(lines)


def paired(rows: Sequence[Mapping], others: Sequence[Mapping], column: str, text: str) -> Interval | None:
    """Of `rows` minus `others`, prompt by prompt."""
    means = []
    for each in (rows, others):
        found: dict[int, list[float]] = {}
        for row in each:
            if row["text"] == text and row[column] is not None:
                found.setdefault(row["prompt"], []).append(row[column])
        means.append({prompt: float(np.mean(values)) for prompt, values in found.items()})
    return bootstrap([means[0][prompt] - means[1][prompt] for prompt in means[0] if prompt in means[1]])


def _cell(value: Interval | None, factor: float, difference: bool = False) -> str:
    return text_of(value, factor, 1 if factor == 100 else 3, difference)


def plot(file: Path, results: Mapping[str, Sequence[Mapping]]) -> None:
    """Response over 1 - LPIPS outside: a line through each family's strengths, a point for every other row. A method is
    better only where it lies above the lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    points = {name: [over_prompts(rows, column, "complete") for column in ("outside", "shown")]
              for name, rows in results.items()}  # fmt: skip
    points = {name: (1 - place[0].mean, 100 * place[1].mean, place) for name, place in points.items() if all(place)}
    for family, colour in ((NAIVE, "tab:orange"), (OURS, "tab:blue")):
        own = sorted(point[:2] for name, point in points.items() if name == family or f"{family}, strength" in name)
        axes.plot([x for x, _ in own], [y for _, y in own], color=colour, label=f"{family}, by strength")
    for name, (x, y, place) in points.items():
        sides = [[place[0].high - place[0].mean], [place[0].mean - place[0].low]]
        ends = [[100 * (place[1].mean - place[1].low)], [100 * (place[1].high - place[1].mean)]]
        axes.errorbar([x], [y], xerr=sides, yerr=ends, fmt="o", color="0.4", alpha=0.6, markersize=4)
        axes.annotate(name, (x, y), (4, 3), textcoords="offset points", fontsize=7)
    axes.set_xlabel("preservation: 1 - LPIPS outside")
    axes.set_ylabel("response, %")
    axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
