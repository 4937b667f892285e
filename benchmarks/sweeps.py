"""Each number of RB-Guidance swept alone: what it does to the person, the moles and the prompt (Fig. 7 and Fig. 14).

    python run.py bench sweeps                                  # all of SWEEPS, 10 held-out people x 5 prompts
    python run.py bench sweeps --inputs gain u                  # some of them
    python run.py bench sweeps --values gain=0.1,1,10 --set clip=0          # other values, with the cap off
    python run.py bench sweeps --encoders eta0=a.safetensors eta0.002=b.safetensors     # trainings, one a value
    python run.py bench sweeps --part 1/2                       # every second person, in one of two processes; no page
    python run.py bench sweeps --smoke                          # a handful, for CI

Runs and results are shared with the ablation: nothing is made twice, and an interrupted sweep goes on where it was by
the same command. After the parts, the same call without `--part` finds everything made and writes docs/sweeps.md and a
plot for each input. Sampler, scheduler, steps and cfg are those of the demo's workflow; `--set` has the last word.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from omniportrait import run

run.use_comfyui()
sys.path.insert(0, str(Path(__file__).parent))

from _campaign import Campaign, arguments, command, converted  # noqa: E402
from _intervals import difference_of, mean_of  # noqa: E402
from _portraits import Variant, defaults, sampling  # noqa: E402
from omniportrait.demo.measures.intervals import Interval  # noqa: E402

SWEEPS: dict[str, tuple[object, ...]] = {
    "u": (0.2, 0.4, 0.6, 0.8, 1.0),
    "gain": (1.0, 10.0, 40.0, 160.0, 640.0, 2560.0),
    "clip": (0.0, 0.1, 0.3, 0.6, 1.0),
    "t0": (71, 271, 471, 671, 871),
    "gamma": (1, 2, 3, 4),
    "alpha": (1.0, 1.5, 2.0, 3.0),
    "beta": (0.2, 0.35, 0.5, 0.65, 0.8),
    "feature_block": (0, 1, 2, 3, 4, 5),
    "reduction": ("mean", "sum"),
    "refinement": ("outer", "inner"),
    "sigma_scale": (False, True),
    "reference_noise": ("fixed", "matched"),
    "second_block": (-1, 0, 1),
    "mutual": (False, True),
    "feather": (0, 1, 2),
    "target": ("noise", "x0"),
    "guided_pass": ("full", "shared", "half", "crop"),
    "every": (1, 2, 3),
}
"""Input and its values. p is not among them: E is proportional to it, so it does what gain does."""
SHOWN = {
    "distance": ("distance ↓", 1),
    "kept": ("moles kept, % ↑", 100),
    "text": ("text, % ↑", 100),
    "change": ("background change, /255 ↓", 1),
    "iou": ("mask IoU ↑", 1),
    "seconds": ("seconds ↓", 1),
}
"""Columns of the plots and tables: title and factor."""
COSTS = ("guided_pass", "every", "feature_block")
"""Inputs that trade likeness for time; they share a plot."""
ENCODERS = "pivot encoder"

INTRODUCTION = """# RB-Guidance, one number at a time

Made by `{command}`; do not edit.

{people} held-out people × {prompts} held-out prompts on the embedded model ({settings}). Means over the people with 95%
intervals, by resampling the people. The measures are those of [the ablation](ablation.md). The grey line is RB-Guidance
off; the node's own value is marked in the plots and by a star in the tables. *Gain over off* is the difference to
RB-Guidance off on the same people, prompts and noise, **bold** where its interval leaves 0 out.
"""


def plan(options: argparse.Namespace) -> dict[str, dict[object, Variant]]:
    """Input, then value, to the variant. Values that all variants share under different names are made once."""
    given = dict(map(values_of, options.values))
    names = options.inputs or list(given) or ([] if options.encoders else list(SWEEPS))
    sweeps: dict[str, dict[object, Variant]] = {}
    for name in names:
        values = given.get(name) or SWEEPS.get(name)
        if not values:
            raise SystemExit(f"There are no values for {name}: give some by --values {name}=A,B,C.")
        if options.smoke:
            values = values[:2]
        sweeps[name] = {v: Variant(f"{name} {v}", options.encoder, {name: v}) for v in values}
    if options.encoders:
        files = dict(word.split("=", 1) for word in options.encoders)
        sweeps[ENCODERS] = {label: Variant(f"{ENCODERS} {label}", Path(file)) for label, file in files.items()}
    return sweeps


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


Means = Mapping[object, Mapping[str, Interval | None]]


def plot(file: Path, name: str, values: Means, off: Mapping[str, Interval | None], default: object) -> None:
    """One panel a column: mean and interval over the value, evenly spaced; the default filled; off in grey."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = [c for c in SHOWN if any(cells[c] for cells in values.values())]
    figure = Figure(figsize=(3.1 * max(len(columns), 1), 2.7), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, column in zip(figure.subplots(1, max(len(columns), 1), squeeze=False)[0], columns, strict=False):
        title, factor = SHOWN[column]
        if base := off[column]:
            panel.axhspan(base.low * factor, base.high * factor, color="0.9")
            panel.axhline(base.mean * factor, color="0.6")
        known = [(i, value, cells[column]) for i, (value, cells) in enumerate(values.items()) if cells[column]]
        places, means = [i for i, _, _ in known], [cell.mean * factor for _, _, cell in known]
        low, high = ([getattr(cell, end) * factor for _, _, cell in known] for end in ("low", "high"))
        panel.plot(places, means, color="tab:blue", zorder=2)
        panel.vlines(places, low, high, color="tab:blue", zorder=2)
        faces = ["tab:blue" if value == default else "white" for _, value, _ in known]
        panel.scatter(places, means, c=faces, edgecolors="tab:blue", zorder=3)
        panel.set_xticks(range(len(values)), [shown(value) for value in values])
        panel.set_title(title, fontsize=9)
        panel.set_xlabel(name, fontsize=9)
        panel.tick_params(labelsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def plot_costs(file: Path, by_input: Mapping[str, Means], off: Mapping[str, Interval | None]) -> None:
    """Distance to the reference against seconds over RB-Guidance off: lower left is better."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    for name, values in by_input.items():
        known = [(v, c) for v, c in values.items() if c["distance"] and c["seconds"]]
        times = [cells["seconds"].mean / off["seconds"].mean for _, cells in known]
        panel.errorbar(
            times, [cells["distance"].mean for _, cells in known], fmt="o", label=name,
            yerr=[[abs(getattr(c["distance"], end) - c["distance"].mean) for _, c in known] for end in ("low", "high")],
        )  # fmt: skip
        for time, (value, cells) in zip(times, known, strict=True):
            panel.annotate(shown(value), (time, cells["distance"].mean), (4, 3), textcoords="offset points", fontsize=8)
    if off["distance"]:
        panel.axhline(off["distance"].mean, color="0.6")
    panel.set_xlabel("seconds of sampling over RB-Guidance off")
    panel.set_ylabel("distance to the reference")
    panel.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


def shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(name: str, values: Means, gains: Means, default: object) -> str:
    """Markdown: a row for each value, its means and its gain over RB-Guidance off."""
    columns = [c for c in SHOWN if any(cells[c] for cells in values.values())]
    head = [name, *(SHOWN[c][0] for c in columns), *(f"{SHOWN[c][0]}, gain over off" for c in ("distance", "kept"))]
    lines = [head, ["---"] * len(head)]
    for value, cells in values.items():
        entries = [text(cells[c], SHOWN[c][1]) for c in columns]
        entries += [text(gains[value][c], SHOWN[c][1], "+") for c in ("distance", "kept")]
        lines.append([f"{shown(value)}{'*' if value == default else ''}", *entries])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def text(value: Interval | None, factor: float, sign: str = "") -> str:
    if value is None:
        return "–"
    digits = 3 if factor == 1 else 1
    mean, low, high = (f"{each * factor:{sign}.{digits}f}" for each in (value.mean, value.low, value.high))
    return f"{f'**{mean}**' if sign and value.significant else mean} [{low}, {high}]"


def page(campaign: Campaign, sweeps: Mapping[str, Mapping[object, Variant]], results: Mapping, images: Path) -> str:
    """The page for people, and its plots as files."""
    off = results["off"]
    settings, people, prompts = campaign.told_settings(), *(len({row[k] for row in off}) for k in ("person", "prompt"))
    lines = [INTRODUCTION.format(command=command("sweeps"), people=people, prompts=prompts, settings=settings)]
    means_off, costs = {c: mean_of(off, c) for c in SHOWN}, {}
    for name, by_value in sweeps.items():
        rows = {value: results[variant.name] for value, variant in by_value.items()}
        values = {value: {c: mean_of(each, c) for c in SHOWN} for value, each in rows.items()}
        gains = {value: {c: difference_of(each, off, c) for c in SHOWN} for value, each in rows.items()}
        default = campaign.studio.feature_block if name == "feature_block" else {**defaults(), **sampling()}.get(name)
        file = images / f"sweep_{name.replace(' ', '_')}.png"
        plot(file, name, values, means_off, default)
        if name in COSTS:
            costs[name] = values
        lines += [f"## {name}", "", f"![{name}]({images.name}/{file.name})", ""]
        lines += [table(name, values, gains, default), ""]
    if costs:
        plot_costs(images / "sweep_costs.png", costs, means_off)
        lines += ["## Likeness against time", "", f"![costs]({images.name}/sweep_costs.png)", ""]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = arguments("sweeps", identities=10, prompts=5)
    made.add_argument("--inputs", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(SWEEPS)}")
    made.add_argument("--values", nargs="+", default=[], metavar="NAME=A,B,C", help="other values, or other inputs")
    made.add_argument("--encoders", nargs="+", default=[], metavar="LABEL=FILE", help="pivot encoders to compare")
    return made


def main() -> int:
    options = parser().parse_args()
    logging.getLogger("omniportrait").setLevel(logging.ERROR)
    sweeps = plan(options)
    campaign = Campaign(options)
    variants = [Variant("off", options.encoder, {"strength": 0.0})]
    variants += [variant for by_value in sweeps.values() for variant in by_value.values()]
    results = campaign.measure(variants)
    if campaign.parts > 1:
        return 0
    images = (options.store if options.smoke else options.page.parent) / "images"
    campaign.publish(page(campaign, sweeps, results, images))
    return 0


if __name__ == "__main__":
    sys.exit(main())
