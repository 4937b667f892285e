"""What the soak's prompts show: whether memory is flat and whether a picture changed, in numbers, words and a plot."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .trend import Trend, trend, warm_up

CROPS = (1.6, 2.0, 2.6)
MIB = 2**20


@dataclass(frozen=True)
class Asked:
    """One prompt. name: plain, or guided and its crop. digest: of the latent's bits. start, end: seconds on the
    server's clock. rss, device: bytes at its end."""

    name: str
    digest: str
    start: float
    end: float
    rss: int
    device: int

    @property
    def kind(self) -> str:
        return self.name.split(",")[0]

    @property
    def seconds(self) -> float:
        return self.end - self.start


# What came of it


def trends(asked: Sequence[Asked]) -> dict[str, Trend]:
    """The resident set's and, where there is a device, its memory's."""
    names = [each.name for each in asked]
    made = {"resident set": trend(names, [each.rss / MIB for each in asked])}
    if any(each.device for each in asked):
        made["device memory"] = trend(names, [each.device / MIB for each in asked])
    return made


def changed(asked: Sequence[Asked]) -> list[str]:
    """Names whose pictures are not all the same, bit for bit."""
    return sorted({each.name for each in asked if len({a.digest for a in asked if a.name == each.name}) > 1})


def unguided(asked: Sequence[Asked]) -> list[str]:
    """Names of guided prompts that gave a plain one's picture: nothing would be tried then."""
    plain = {each.digest for each in asked if each.kind == "plain"}
    return sorted({each.name for each in asked if each.kind != "plain" and each.digest in plain})


def compared(asked: Sequence[Asked]) -> dict[str, tuple[int, int]]:
    """By kind, how many pictures were compared with the first of their name, and how many of these differed."""
    first: dict[str, Asked] = {}
    counts = {each.kind: (0, 0) for each in asked}
    for each in asked:
        if each is not first.setdefault(each.name, each):
            count, differed = counts[each.kind]
            counts[each.kind] = count + 1, differed + (each.digest != first[each.name].digest)
    return counts


def faults(asked: Sequence[Asked], allowed: float, allowed_slope: float) -> list[str]:
    """What is not well, in words; empty if memory was shown to be flat and no picture changed."""
    found = [f"the pictures changed: {name}" for name in changed(asked)]
    found += [f"the picture of a plain prompt: {name}" for name in unguided(asked)]
    for name, memory in trends(asked).items():
        interval = f"{memory.low:+.2f} to {memory.high:+.2f} MiB per 100 prompts, {allowed_slope:g} allowed"
        if memory.growth > allowed:
            found.append(f"{name}: {memory.growth:+.1f} MiB grown, {allowed:g} allowed")
        if memory.low > allowed_slope:
            found.append(f"{name}: a slope of {interval}")
        elif not memory.high <= allowed_slope:
            found.append(f"{name}: too few prompts, or too much noise, to judge the slope: {interval}")
    return found


# What is told


def report(asked: Sequence[Asked], wrong: Sequence[str]) -> list[str]:
    """The numbers and the verdict, in Markdown that reads well on a terminal, too."""
    rows = {
        f"start: median of prompts {warm_up(len(asked)) + 1} to {2 * warm_up(len(asked))}, MiB": "{0.start:.1f}",
        f"end: median of the last {warm_up(len(asked))}, MiB": "{0.end:.1f}",
        "growth, MiB": "{0.growth:+.1f}",
        "growth, MiB a prompt": "{1:+.4f}",
        "slope (Theil–Sen), MiB per 100 prompts, 95% interval": "{0.slope:+.2f} [{0.low:+.2f}, {0.high:+.2f}]",
        "slope (least squares), MiB per 100 prompts, ± standard error": "{0.line:+.2f} ± {0.error:.2f}",
    }
    memories = trends(asked)
    apart = max(len(asked) - 2 * warm_up(len(asked)), 1)  # prompts from the middle of one fifth to that of the other
    lines = [f"| after the warm-up | {' | '.join(memories)} |", "|---" * (1 + len(memories)) + "|"]
    for title, form in rows.items():
        cells = (form.format(memory, memory.growth / apart) for memory in memories.values())
        lines.append(f"| {title} | {' | '.join(cells)} |")
    lines += ["", "| pictures | compared bit for bit with the first | differed |", "|---|---|---|"]
    lines += [f"| {kind} | {count} | {differed} |" for kind, (count, differed) in compared(asked).items()]
    return [*lines, "", f"**NOT shown to be flat**: {'; '.join(wrong)}." if wrong else "**Flat.**"]


def page(asked: Sequence[Asked], where: str, options: argparse.Namespace, image: str) -> str:
    """docs/results/soak.md."""
    seconds = {kind: statistics.median(a.seconds for a in asked if a.kind == kind) for kind in compared(asked)}
    pause = statistics.median([b.start - a.end for a, b in zip(asked, asked[1:], strict=False)] or [math.nan])
    lines = [
        "# A server that is asked again and again",
        "",
        "Made by `python run.py bench soak`; do not edit.",
        "",
        f"{where}. {len(asked)} prompts of the demo's workflow at {options.size}×{options.size} with {options.steps} "
        "steps, asked of one ComfyUI process: a plain KSampler and RB-Guidance by turns, with the same words and seed. "
        f"The guided ones take the crops {', '.join(map(str, CROPS))} of the face in turn, one more than the "
        "reference cache holds, so that features are made, dropped and made again. "
        f"{options.ahead} prompts are queued behind the one that runs; from the end of one to the start of the next it "
        f"took {1000 * pause:.0f} ms (median). {asked[-1].end - asked[0].start:.0f} s in all; by medians "
        f"{', '.join(f'{value:.2f} s a {kind} prompt' for kind, value in seconds.items())}.",
        "",
        f"![Memory over the prompts]({image})",
        "",
        "Memory is the server's, read as soon as a prompt's end is told. The first fifth of the prompts warms up and "
        "is left out. The slopes compare each prompt with those of its own kind (plain, or guided with the same crop); "
        "the black line is Theil and Sen's. Flat is: at most "
        f"{options.allowed:g} MiB grown, the upper end of the Theil–Sen interval at most {options.allowed_slope:g} MiB "
        "per 100 prompts, no picture other than the first of its kind, and no guided one like a plain one.",
        "",
        *report(asked, faults(asked, options.allowed, options.allowed_slope)),
    ]
    return "\n".join(lines) + "\n"


def plot(asked: Sequence[Asked], file: Path) -> None:
    """Memory over the prompts, a panel each; the warm-up shaded, the judged slope as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    memories, warm = trends(asked), warm_up(len(asked))
    figure = Figure(figsize=(7.0, 2.7 * len(memories)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(memories), 1, squeeze=False)[:, 0]
    for panel, (name, memory) in zip(panels, memories.items(), strict=True):
        values = [(each.rss if name == "resident set" else each.device) / MIB for each in asked]
        for kind in compared(asked):
            numbers = [number for number, each in enumerate(asked, 1) if each.kind == kind]
            panel.plot(numbers, [values[number - 1] for number in numbers], ".", label=kind)
        ends, middle = np.array([warm + 1, len(asked)]), statistics.median(values[warm:])
        panel.plot(ends, middle + memory.slope / 100 * (ends - ends.mean()), "k-", linewidth=1)
        panel.axvspan(1, warm + 0.5, color="0.9")
        panel.set(xlabel="prompt", ylabel=f"{name}, MiB")
        panel.legend(fontsize=8, loc="lower right")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
