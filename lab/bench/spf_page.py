"""The table of SPF-Portrait's rows for people, and the trade-off as a plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ...evaluation.intervals import Interval, bootstrap, text_of
from ..world.prompts import HELD_OUT_PROMPTS
from .campaign import markdown
from .spf_runs import NAIVE, OURS

RESPONSE = {"shown": ("response, %", 100), "clip_t": ("CLIP-T", 1), "words": ("base text's words, %", 100)}
PRESERVED = {
    "outside": ("LPIPS outside", 1), "whole": ("LPIPS", 1), "id": ("ID", 1), "clip_i": ("CLIP-I", 1),
    "segments": ("Seg-Cons", 100), "face": ("face found, %", 100),
}  # fmt: skip
"""Column: title and factor."""
HEAD = """# SPF-Portrait in the portrait world

Made by `{command}`; do not edit. {count} pictures a row and text, of {prompts} prompts; {attributes}; {seeds}
training(s) of each row.

For each prompt one noise and one sampler: the original model on the base text, the row's model on the **complete
text** (base text and target) and on the **base text alone**. Preservation compares either picture with the original's,
pair by pair; intervals of 95% by resampling the prompts. The paper's measures have no free weights here, so others
stand in for them. *ours* enhances the response by small towers in CLIP's place, which the shipped recipes leave out
(*without enhancement*, for want of such a file); the judge has towers of its own. *gated at inference* never asks the
LoRA where the text names no attribute, so on the base text alone it is the original.

| paper | here |
|---|---|
| FID, customised and original pictures | Fréchet distance of the segmenter's deepest features, from 200 prompts on |
| LPIPS | distance of the segmenter's features; *outside*: without the attribute and two cells around it |
| ID | 1 − distance / 1.2 of dlib's embedding, where both pictures have a face |
| CLIP-I, CLIP-T | cosines of small towers that read latents |
| Seg-Cons | overlap of the segmenter's classes but hair and the attribute, × 100 |
| CLIP-T | *response*: the share of pictures in which the segmenter finds the attribute, by the best cut on renders |
| HPSv2, MPS | none; in their place whether a face is found, and how many of the base text's words are still shown |
"""


def page(
    command: str, results: Mapping[str, Sequence[Mapping]], distances: Mapping[str, float | None],
    times: Iterable[Mapping[str, float]],
) -> list[str]:  # fmt: skip
    """Lines of Markdown. times: of each training its name, minutes, and seconds a step of its stages."""
    some = [row for rows in results.values() for row in rows]
    lines = [HEAD.format(
        command=command, count=len({row["prompt"] for row in some}), prompts=len({prompt_of(row) for row in some}),
        seeds=1 + max(row["seed"] for row in some), attributes=", ".join(sorted({row["attribute"] for row in some})),
    )]  # fmt: skip
    lines += ["## Complete text", "", complete_table(results, distances), ""]
    lines += ["## Base text alone", "", base_table(results), ""]
    for other in (NAIVE, OURS):
        if other in results and len(results) > 2:
            lines += [f"## Differences to {other}", "", "Pair by pair; **bold** where 0 is outside.", "",
                      differences(results, other), ""]  # fmt: skip
    if curve := [name for name in results if name == NAIVE or name.startswith(f"{NAIVE}, strength")]:
        lines += at_equal_response(results, curve)
    if times := list(times):
        lines += ["## Time", "", "Of a training: minutes in all, and a step's seconds (median) by stage.", "",
                  time_table(times), ""]  # fmt: skip
    return lines


def time_table(times: Sequence[Mapping[str, float]]) -> str:
    lines = [["", "minutes", "fit", "align", "align / fit"]]
    for each in times:
        fit, align = each.get("fit"), each.get("align")
        ratio = f"{align / fit:.2f}" if fit and align else "–"
        lines.append(
            [each["name"], f"{each['minutes']:.1f}", *("–" if s is None else f"{s:.2f}" for s in (fit, align)), ratio]
        )
    return markdown(lines)


def at_equal_response(results: Mapping[str, Sequence[Mapping]], curve: Sequence[str]) -> list[str]:
    """Lines of Markdown: each row's preservation over that of the ordinary LoRA at the strength at which it responds
    as often, between the two of its strengths that lie about it."""
    known = sorted((over_prompts(results[name], "shown", "complete").mean, name) for name in curve)
    columns = {name: PRESERVED[name] for name in ("outside", "id", "segments")}
    lines = [["", "response, %", "the LoRA between", *(title for title, _ in columns.values()), "false response, %"]]
    for name, rows in results.items():
        if name in curve or name == "original":
            continue
        response = over_prompts(rows, "shown", "complete").mean
        pairs = [pair for pair in zip(known, known[1:], strict=False) if pair[0][0] <= response <= pair[1][0]]
        if not pairs:
            lines.append([name, f"{100 * response:.0f}", "no strengths", *["–"] * (len(columns) + 1)])
            continue
        (low, below), (high, above) = pairs[0]
        share = (response - low) / (high - low) if high > low else 0.0

        def over(column: str, text: str, factor: float, rows=rows, below=below, above=above, share=share) -> str:
            own, one, other = (means_of(each, column, text) for each in (rows, results[below], results[above]))
            both = own.keys() & one.keys() & other.keys()
            return _cell(
                bootstrap([own[p] - (1 - share) * one[p] - share * other[p] for p in sorted(both)]), factor, True
            )

        cells = [over(column, "complete", factor) for column, (_, factor) in columns.items()]
        between = " and ".join(
            "strength 1" if each == NAIVE else each.removeprefix(f"{NAIVE}, ") for each in (below, above)
        )
        lines.append([name, f"{100 * response:.0f}", between, *cells, over("shown", "base", 100)])
    told = f"Over {NAIVE} at the strength at which it responds as often; **bold** where 0 is outside."
    return ["## At equal response", "", told, "", markdown(lines), ""]


def prompt_of(row: Mapping) -> int:
    """Pictures of one prompt, with either subject and other noises, are no independent cases."""
    return row["prompt"] % len(HELD_OUT_PROMPTS)


def means_of(rows: Sequence[Mapping], column: str, text: str) -> dict[int, float]:
    """A column's mean for each prompt, of subjects, noises, attributes and trainings."""
    each: dict[int, list[float]] = {}
    for row in rows:
        if row["text"] == text and row[column] is not None:
            each.setdefault(prompt_of(row), []).append(row[column])
    return {prompt: float(np.mean(values)) for prompt, values in each.items()}


def over_prompts(rows: Sequence[Mapping], column: str, text: str) -> Interval | None:
    """A column's mean over the prompts."""
    return bootstrap(list(means_of(rows, column, text).values()))


def complete_table(results: Mapping[str, Sequence[Mapping]], distances: Mapping[str, float | None]) -> str:
    columns = RESPONSE | PRESERVED
    lines = [["", "response, %", "false response, %", *(title for title, _ in list(columns.values())[1:]), "FID"]]
    for name, rows in results.items():
        cells = [_cell(over_prompts(rows, column, "complete"), factor) for column, (_, factor) in columns.items()]
        cells.insert(1, _cell(over_prompts(rows, "shown", "base"), 100))
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
    one, other = (means_of(each, column, text) for each in (rows, others))
    return bootstrap([one[prompt] - other[prompt] for prompt in one if prompt in other])


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
