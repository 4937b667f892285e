"""Each number of RB-Guidance, or of Reference Attention without it, swept alone: what it does to the person, the moles
and the prompt (Fig. 7 and Fig. 14).

    python run.py bench sweeps --first 100                      # all of SWEEPS, 10 held-out people x 5 prompts
    python run.py bench sweeps --inputs gain u                  # some of them
    python run.py bench sweeps --inputs attention --page FILE               # of Reference Attention
    python run.py bench sweeps --values gain=0.1,1,10 --set clip=0          # other values, with the cap off
    python run.py bench sweeps --also "both: ensemble=1 t0=271"             # a combination
    python run.py bench sweeps --encoders eta0=a.safetensors eta0.002=b.safetensors     # trainings, one a value
    python run.py bench sweeps --inputs all --encoders eta0=a.safetensors       # all of SWEEPS as well
    python run.py bench sweeps --part 1/2                       # every second person, in one of two processes; no page
    python run.py bench sweeps --smoke                          # a handful, for CI

Strength first, then the rest at equal strength: an option that changes the gradient's size is otherwise judged by that
alone. `--values clip=0.05,0.1,0.2,0.4,0.8 --set gain=100000` sweeps the cap where it always binds, and `--set
gain=100000 --set clip=0.2` keeps it so for the others. What is chosen here is to be confirmed by the ablation on other
people: `--first 100` takes people whom its default leaves out.

Runs and results are shared with the ablation: nothing is made twice, and an interrupted sweep goes on where it was by
the same command. After the parts, the same call without `--part` finds everything made and writes
docs/results/sweeps.md and its plots. What is not swept is as the demo's workflow has it; `--set` has the last word.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...evaluation.intervals import Interval, difference_of, mean_of, text_of
from .campaign import Campaign, arguments, command, converted, markdown, named
from .portraits import ATTENTION_INPUTS, Variant, defaults
from .sheets import contact_sheet, one_each

SWEEPS: dict[str, tuple[object, ...]] = {
    "u": (0.2, 0.6, 1.0),
    "gain": (1.0, 10.0, 40.0, 160.0),
    "clip": (0.03, 0.1, 0.3, 1.0),
    "t0": (71, 271, 471, 671),
    "gamma": (1, 3),
    "alpha": (1.0, 2.0, 3.0),
    "beta": (0.35, 0.5, 0.65),
    "feature_block": (1, 3, 4, 5, 7),
    "reduction": ("mean", "sum"),
    "refinement": ("outer", "inner"),
    "sigma_scale": (False, True),
    "guided_pass": ("full", "shared"),
    "every": (1, 2, 3),
}
"""Input and its values. p is not among them: E is proportional to it, so it does what gain does."""
ATTENTION: dict[str, tuple[object, ...]] = {
    "attention_strength": (0.5, 1.0, 2.0),
    "attention_start_percent": (0.0, 0.3),
    "attention_end_percent": (0.6, 1.0),
    "attention_levels": ("finest", "all"),
    "attention_where": ("whole picture", "own face"),
}
"""The same of Reference Attention, whose name stands before; the pivot is there and RB-Guidance is not."""
GAINS = {
    "margin": ("margin", 1),
    "distance": ("distance", 1),
    "similarity": ("crop similarity", 1),
    "detail": ("detail, %", 100),
    "scene": ("scene, %", 100),
    "expression": ("expression, %", 100),
    "face": ("face found, %", 100),
}
"""Columns shown as differences to RB-Guidance, or Reference Attention, off: title and factor."""
VALUES = {
    "change": ("background change, /255", 1),
    "iou": ("mask IoU", 1),
    "guided": ("calls guided, %", 100),
    "amount": ("guidance in the prediction, %", 100),
}
"""Columns shown as they are."""
PLOTTED = ("margin", "similarity", "detail", "scene", "change", "amount")
COSTS = ("guided_pass", "every", "feature_block")
"""Inputs that trade likeness for time; they share a plot."""
STRENGTHS = ("gain", "clip", "u", "strength", "attention_strength")
"""Inputs that trade the prompt for likeness; they share a plot (Fig. 14), and have a sheet of pictures (Fig. 7)."""
OWN_STRENGTH = {"attention_strength": ATTENTION_INPUTS["attention_strength"]}
"""As the node has it."""
ENCODERS, COMBINED = "pivot encoder", "combined"

INTRODUCTION = """# {what}, one number at a time

Made by `{command}`; do not edit.

{people} held-out people (from number {first}) × {prompts} held-out prompts each on the embedded model ({settings}). The
measures are those of `bench ablation` ([how they are calibrated](measures.md)). Differences are to {what} off
(and to {own}) with the same people, prompts, noise and encoder: means over the people with 95%
intervals, by resampling the people; **bold** where 0 is outside. Among so many, one in twenty is bold by chance:
what is chosen here has to hold on the ablation's people too. That value is filled in the plots and starred in the
tables.
"""

Sweep = Mapping[object, Variant]
Cells = Mapping[str, Interval | None]


def plan(options: argparse.Namespace) -> dict[str, dict[object, Variant]]:
    """Input, then value, to the variant."""
    given = dict(map(values_of, options.values))
    every = options.inputs == ["all"] or not (options.inputs or given or options.encoders or options.also)
    names = list(SWEEPS) if every else options.inputs or list(given)
    if names == ["attention"]:
        names = list(ATTENTION)
    sweeps: dict[str, dict[object, Variant]] = {}
    for name in names:
        values = given.get(name) or (SWEEPS | ATTENTION).get(name)
        if not values:
            raise SystemExit(f"There are no values for {name}: give some by --values {name}=A,B,C.")
        if options.smoke:
            values = values[:2]
        sweeps[name] = {v: Variant(f"{name} {shown(v)}", options.encoder, inputs_of(name) | {name: v}) for v in values}
    if options.also:
        sweeps[COMBINED] = {name: Variant(name, options.encoder, inputs) for name, inputs in options.also}
    if options.encoders:
        files = dict(word.split("=", 1) for word in options.encoders)
        sweeps[ENCODERS] = {label: Variant(f"{ENCODERS} {label}", Path(file)) for label, file in files.items()}
    return sweeps


def inputs_of(name: str) -> dict[str, object]:
    """What is on where an input is swept: RB-Guidance, or Reference Attention alone."""
    return {"strength": 0.0} | OWN_STRENGTH if name in ATTENTION_INPUTS else {}


def values_of(text: str) -> tuple[str, tuple[object, ...]]:
    """`NAME=A,B,C` with the values in the type of that input."""
    name, _, values = text.partition("=")
    known = defaults()
    if name not in known:
        raise SystemExit(f"RB-Guidance KSampler has no input {name!r}; it has {', '.join(known)}.")
    try:
        return name, tuple(converted(value, known[name]) for value in values.split(","))
    except argparse.ArgumentTypeError as error:
        raise SystemExit(f"--values {text}: {error}.") from None


def own_value(campaign: Campaign, name: str) -> object:
    """The value that the campaign has where the input is not swept."""
    if name in OWN_STRENGTH:
        return OWN_STRENGTH[name]
    if name == "feature_block" and campaign.studio.inputs[name] < 0:
        return campaign.studio.feature_block
    return campaign.studio.inputs.get(name)


def subject_of(sweeps: Mapping[str, Sweep]) -> dict[str, str]:
    """What a page is about, whose value is the own one, and how the names of its plots begin."""
    if all(name in ATTENTION_INPUTS for name in sweeps):
        return {"what": "Reference Attention", "own": "the node's own value", "prefix": "sweep_attention"}
    return {"what": "RB-Guidance", "own": "the demo's own value", "prefix": "sweep"}


def plot(file: Path, name: str, gains: Mapping[object, Cells], values: Mapping[object, Cells], own: object) -> None:
    """One panel a column of PLOTTED: mean and interval over the value, evenly spaced; the demo's own filled."""
    figure, panels = _panels(len(PLOTTED))
    for panel, column in zip(panels, PLOTTED, strict=True):
        paired = column in GAINS
        title, factor = (GAINS if paired else VALUES)[column]
        cells = {value: each[column] for value, each in (gains if paired else values).items()}
        known = [(i, value, cell) for i, (value, cell) in enumerate(cells.items()) if cell]
        places, means = [i for i, _, _ in known], [cell.mean * factor for _, _, cell in known]
        low, high = ([getattr(cell, end) * factor for _, _, cell in known] for end in ("low", "high"))
        panel.axhline(0, color="0.6")
        panel.plot(places, means, color="tab:blue", zorder=2)
        panel.vlines(places, low, high, color="tab:blue", zorder=2)
        faces = ["tab:blue" if value == own else "white" for _, value, _ in known]
        panel.scatter(places, means, c=faces, edgecolors="tab:blue", zorder=3)
        panel.set_xticks(range(len(cells)), [shown(value) for value in cells])
        panel.set_title(f"{title}{' over off' if paired else ''}", fontsize=9)
        panel.set_xlabel(name, fontsize=9)
        panel.tick_params(labelsize=8)
    _save(figure, file)


def scatter(file: Path, points: Mapping[str, Mapping[object, tuple[float, Interval | None]]], x: str) -> None:
    """Crop similarity gained over off, with its interval, against `x`; a colour for each input, the value beside each
    point."""
    figure, (panel,) = _panels(1, (6.4, 4.2))
    for name, by_value in points.items():
        known = [(value, place, cell) for value, (place, cell) in by_value.items() if cell]
        places, means = [place for _, place, _ in known], [cell.mean for _, _, cell in known]
        ends = [[abs(getattr(cell, end) - cell.mean) for _, _, cell in known] for end in ("low", "high")]
        panel.errorbar(places, means, yerr=ends, fmt="o", label=name)
        for value, place, cell in known:
            panel.annotate(shown(value), (place, cell.mean), (4, 3), textcoords="offset points", fontsize=8)
    panel.axhline(0, color="0.6")
    panel.set_xlabel(x)
    panel.set_ylabel("crop similarity over off")
    figure.legend(loc="outside upper center", ncols=len(points))
    _save(figure, file)


def _panels(count: int, size: tuple[float, float] | None = None) -> tuple:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size or (2.9 * count, 2.7), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _save(figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(name: str, gains: Mapping[object, Cells], values: Mapping[object, Cells], own: object) -> str:
    """Markdown: a row for each value, its differences to off and its values."""
    lines = [[name, *(f"{title}, over off" for title, _ in GAINS.values()), *(title for title, _ in VALUES.values())]]
    for value in gains:
        entries = [text_of(gains[value][c], factor, digits(factor), True) for c, (_, factor) in GAINS.items()]
        entries += [text_of(values[value][c], factor, digits(factor)) for c, (_, factor) in VALUES.items()]
        lines.append([f"{shown(value)}{'*' if value == own else ''}", *entries])
    return markdown(lines)


def compared(name: str, differences: Mapping[object, Cells]) -> str:
    """Markdown: a row for each value but the demo's own, its differences to that."""
    titles = [f"{title}, over the own value" for title, _ in GAINS.values()]
    return markdown([[name, *titles], *(
        [shown(value), *(text_of(cells[c], factor, digits(factor), True) for c, (_, factor) in GAINS.items())]
        for value, cells in differences.items()
    )])  # fmt: skip


def time_line(times: Mapping[object, float]) -> str:
    """A line: each value's sampling time over what is compared with."""
    return f"Sampling time over off: {', '.join(f'{shown(value)} {time:.2f}' for value, time in times.items())}."


def digits(factor: float) -> int:
    """Per cent need fewer."""
    return 3 if factor == 1 else 1


def page(
    campaign: Campaign,
    sweeps: Mapping[str, Sweep],
    results: Mapping[str, Sequence[Mapping]],
    times: Mapping[str, float],
    images: Path,
) -> str:
    """The page for people, and its plots as files."""
    some, subject = next(iter(results.values())), subject_of(sweeps)
    lines = [INTRODUCTION.format(
        command=command("sweeps"), people=len({row["person"] for row in some}), first=campaign.options.first,
        prompts=campaign.options.prompts, settings=campaign.told_settings(), **subject,
    )]  # fmt: skip
    costs, trades, cases = {}, {}, one_each(campaign.cases(), 4)
    for name, by_value in sweeps.items():
        rows = {value: results[variant.name] for value, variant in by_value.items()}
        off = {value: results[variant.off.name] for value, variant in by_value.items()}
        gains = {v: {c: difference_of(rows[v], off[v], c) for c in GAINS} for v in rows}
        values = {v: {c: mean_of(rows[v], c) for c in VALUES} for v in rows}
        own = own_value(campaign, name)
        file = images / f"sweep_{name.replace(' ', '_')}.png"
        plot(file, name, gains, values, own)
        lines += [f"## {name}", "", f"![{name}]({images.name}/{file.name})", "", table(name, gains, values, own), ""]
        if own in rows and len(rows) > 1:
            others = [v for v in rows if v != own]
            differences = {v: {c: difference_of(rows[v], rows[own], c) for c in GAINS} for v in others}
            lines += [compared(name, differences), ""]
        if name in COSTS:
            costs[name] = {v: (times[variant.name], gains[v]["similarity"]) for v, variant in by_value.items()}
            lines += [time_line({v: times[variant.name] for v, variant in by_value.items()}), ""]
        if name in STRENGTHS:
            lost = {v: gains[v]["scene"] for v in rows}
            trades[name] = {v: (100 * lost[v].mean, gains[v]["similarity"]) for v in rows if lost[v]}
            sheet = images / f"sweep_{name}_sheet.jpg"
            variants = [next(iter(by_value.values())).off, *by_value.values()]
            contact_sheet(campaign.studio, variants, cases).save(sheet, quality=88)
            lines += [f"![{name}, in pictures]({images.name}/{sheet.name})", ""]
    for title, points, x in (("Likeness against time", costs, "sampling time over off"),
                             ("Likeness against the prompt", trades, "scene over off, points")):  # fmt: skip
        if points:
            file = images / f"{subject['prefix']}_{title.split()[-1]}.png"
            scatter(file, points, x)
            lines += [f"## {title}", "", f"![{title}]({images.name}/{file.name})", ""]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = arguments("sweeps", identities=10, prompts=5)
    made.add_argument(
        "--inputs",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"of {', '.join([*SWEEPS, *ATTENTION])}; or all, or attention",
    )
    made.add_argument("--values", nargs="+", default=[], metavar="NAME=A,B,C", help="other values, or other inputs")
    made.add_argument("--encoders", nargs="+", default=[], metavar="LABEL=FILE", help="pivot encoders to compare")
    made.add_argument(
        "--also", type=named, action="append", default=[], metavar='"NAME: INPUT=VALUE ..."', help="a combination"
    )
    return made


def main(words: list[str]) -> int:
    options = parser().parse_args(words)
    logging.getLogger("omniportrait").setLevel(logging.ERROR)
    sweeps = plan(options)
    campaign = Campaign(options)
    variants = [variant for by_value in sweeps.values() for variant in by_value.values()]
    results = campaign.measure([each for variant in variants for each in (variant.off, variant)])
    if campaign.parts > 1:
        return 0
    timed = [variant for name in COSTS for variant in sweeps.get(name, {}).values()]
    times = campaign.times(timed, rounds=1 if options.smoke else 3)
    images = (options.store if options.smoke else options.page.parent) / "images"
    campaign.publish(page(campaign, sweeps, results, times, images))
    return 0
