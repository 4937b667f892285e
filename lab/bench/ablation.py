"""The paper's Table 2 on the embedded model: what each part of OmniPortrait does for people it has never seen.

    python run.py bench ablation                                    # 20 held-out people x 10 held-out prompts
    python run.py bench ablation --identities 50 --prompts 30 --part 1/2    # half of the larger table; no page
    python run.py bench ablation --encoder-without-lloc FILE        # with the row "without L_loc"
    python run.py bench ablation --words FILE                       # with the row "oracle word"
    python run.py bench ablation --also "gain 200: gain=200 clip=0.5"       # one more row
    python run.py bench ablation --without "without both" "literal strength"        # fewer
    python run.py bench ablation --only "without RB-Guidance" "the pivot and Reference Attention" --page FILE
    python run.py bench ablation --smoke                            # a handful, for CI

Every variant starts from the same noise and runs through the pack's own nodes, with what the demo's workflow has;
`--set` has the last word. Resumable: pictures and numbers are kept in output/portraits, and the same call makes what is
missing; after all parts, the call without `--part` finds everything made and writes docs/results/ablation.md and its
sheet.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...evaluation.intervals import DRAWS, Interval, difference_of, mean_of, text_of
from ..measures.text import FACE, HEADS
from .campaign import Campaign, arguments, command, markdown, named
from .judge import RIVALS, VIEWS
from .portraits import ATTENTION_INPUTS, Variant
from .sheets import contact_sheet, one_each

FULL, TRUTH = "full", "drawn by the portrait world"
COPY, STRANGER = "drawn, through the autoencoder", "somebody else, through the autoencoder"
UNGUIDED, WORD, NEITHER = "without RB-Guidance", "without pivot encoder", "without both"
ATTENTION, PIVOT_ATTENTION = "Reference Attention alone", "the pivot and Reference Attention"
ORACLE, ORACLE_ATTENTION = "oracle word", "oracle word and Reference Attention"
GUIDED_ATTENTION, EVERYTHING = "Reference Attention and RB-Guidance", "full and Reference Attention"
PAIRS = {
    "RB-Guidance, with the pivot": (FULL, UNGUIDED),
    "RB-Guidance, without the pivot": (WORD, NEITHER),
    "the pivot, without RB-Guidance": (UNGUIDED, NEITHER),
    "both": (FULL, NEITHER),
    "Reference Attention, over the plain word": (ATTENTION, NEITHER),
    "Reference Attention, over the pivot": (PIVOT_ATTENTION, UNGUIDED),
    "Reference Attention, over full": (EVERYTHING, FULL),
    "RB-Guidance, over Reference Attention": (GUIDED_ATTENTION, ATTENTION),
    "RB-Guidance, over the pivot and Reference Attention": (EVERYTHING, PIVOT_ATTENTION),
    "Reference Attention instead of the pivot": (ATTENTION, UNGUIDED),
    "the oracle word, over the plain word": (ORACLE, NEITHER),
    "the pivot instead of the oracle word": (UNGUIDED, ORACLE),
    "Reference Attention, over the oracle word": (ORACLE_ATTENTION, ORACLE),
}
"""What is added: the row that has it, and the row that lacks it."""


@dataclass(frozen=True)
class Column:
    """factor, digits: how its values are shown. better: +1 where more is better, -1 where less is, 0 for neither."""

    key: str
    title: str
    factor: float
    digits: int
    better: int


TABLE = (
    Column("margin", "margin", 1, 3, 1),
    Column("distance", "distance", 1, 3, -1),
    Column("same", "same person, %", 100, 1, 1),
    Column("similarity", "crop similarity", 1, 3, 1),
    Column("detail", "detail, %", 100, 1, 1),
    Column("scene", "scene, %", 100, 1, 1),
    Column("change", "background change, /255", 1, 2, -1),
    Column("iou", "mask IoU", 1, 3, 1),
    Column("face", "face found, %", 100, 1, 1),
)
INSIDE = (
    Column("kept", "moles kept, %", 100, 1, 1),
    Column("false", "false moles, %", 100, 1, -1),
    Column("contrast", "mole contrast", 1, 2, 1),
    Column("guided", "calls guided, %", 100, 1, 0),
    Column("amount", "guidance in the noise prediction, %", 100, 3, 0),
)
"""What the columns of TABLE are made of, and whether the guidance worked at all."""
TEXT = tuple(Column(head, f"{head}, %", 100, 1, 1) for head in HEADS)
OFF_THE_FACE = tuple(column for column in TEXT if column.key in FACE)
"""The rest of the text is `scene`."""

PAGE = """# What each part of OmniPortrait does

Made by `{command}`; do not edit.

{people} held-out people × {prompts} held-out prompts each on the embedded model ({settings}). Every variant starts
from the same noise. Means over the people with 95% intervals, by resampling the people {draws:,} times.

- **full** is the pack with its trained pivot encoder and RB-Guidance at the `calibrated` strength. Each other row
  leaves out or changes one thing; *literal strength* is Eq. 8 to 11 as printed (sampled like the others, not by the
  paper's 50 steps of DDIM at cfg 7.5). *without background masking* matches and guides the whole picture; its cap is
  still taken over the face. *{truth}* is no generated picture but a render of the same person as the prompt asks, in a
  random pose and light: what the measures give a perfect portrait. *{copy}* is that render encoded and decoded by the
  model's own autoencoder, and *{stranger}* the same of another person with the same noun: the scale on which the
  generated pictures are to be read. The rows with *Reference Attention*, which is ours and not the paper's, have it at
  the node's own values. *oracle word* is the person in the renderer's own numbers instead of a pivot: any encoder's
  upper bound (a base that was taught such words, and `--words`).
- **margin**: how much nearer the face is to other pictures of the person (the mean of {views}) than to those of
  {rivals} others with the same noun, in an embedding that no training has seen. A face that merely looks like a
  reference portrait, frontal and softly lit, gains nothing here. **distance**: to the reference portrait itself, the
  paper's SIM (lower is nearer); **same person**: it is below the cut of {identity:g}. A picture without a face is not
  the same person, has margin 0 and no distance.
- **crop similarity**: mean cosine, place by place over the aligned face, of that network's inner features: how alike
  the faces look rather than who they are. It stands for the paper's CLIP-I, for whose weights there is no room here.
- **detail**: moles kept minus false moles. **Moles kept**: of the reference's moles, those whose place is darker than
  the skin around it by more than {detail:g} deviations; **false moles**: the same share at the places of other
  people's moles, where this person has none: a blotchy skin raises both. **Mole contrast**: the mean darkness.
- Both cuts are those [calibrated](measures.md) on renders that went through the autoencoder, as every generated picture
  did; *{truth}*, which did not, has its own ({drawn_identity:g} and {drawn_detail:g}).
- **scene**: garment, its colour and background, as a classifier of pictures sees them; **text** adds the expression
  and the subject, which another reads off the face.
- **background change**: mean absolute difference to the same variant without RB-Guidance, or without Reference
  Attention where that is all it has, outside of both faces.
- **mask IoU**: M_gen of the last guided step and the face's oval in the finished picture.

{missing}## Values

{values}

## Differences to {base}

On the same people, prompts and noise. **Bold**: 0 is outside of the 95% interval. That happens by chance to one in
twenty differences that are none.

{differences}

## What the halves add

{pairs}

## Behind the numbers

{inside}

The prompt, word by word, and its differences to {base}:

{text}

{text_differences}

## Time

Sampling, the reference's features and tokens made anew each time, over the same without RB-Guidance (without Reference
Attention where that is all there is) made right after it: medians of {rounds} rounds on {device}.

{times}

## Pictures

![Reference and variants](images/{sheet})
"""


def every_row(options: argparse.Namespace) -> list[Variant]:
    """The rows of the table, `full` first."""
    encoder, attending = options.encoder, {"attention_strength": ATTENTION_INPUTS["attention_strength"]}
    rows = [
        Variant(FULL, encoder),
        Variant(UNGUIDED, encoder, {"strength": 0.0}),
        Variant(WORD, None),
        Variant(NEITHER, None, {"strength": 0.0}),
        Variant("without background masking", encoder, {"background_masking": False}),
        Variant("literal strength", encoder, {"mode": "literal"}),
        Variant(ATTENTION, None, {"strength": 0.0} | attending),
        Variant(PIVOT_ATTENTION, encoder, {"strength": 0.0} | attending),
        Variant(GUIDED_ATTENTION, None, attending),
        Variant(EVERYTHING, encoder, attending),
        *(Variant(name, encoder, inputs) for name, inputs in options.also),
    ]
    if options.words:
        oracle = Variant(ORACLE, None, {"strength": 0.0}, words=options.words)
        rows += [oracle, replace(oracle, name=ORACLE_ATTENTION, inputs={"strength": 0.0} | attending)]
    if options.encoder_without_lloc:
        rows.insert(1, Variant("without L_loc", options.encoder_without_lloc))
    bounds = {COPY: "copied", STRANGER: "stranger", TRUTH: "drawn"}
    rows += [Variant(name, source=source) for name, source in bounds.items()]
    return rows


def variants(options: argparse.Namespace) -> list[Variant]:
    """The rows that are asked for; the first is what the others are compared with."""
    rows = every_row(options)
    names = [row.name for row in rows]
    for option in ("without", "only"):
        if unknown := set(getattr(options, option)) - set(names):
            raise SystemExit(f"--{option} {' '.join(sorted(unknown))}: the rows are {', '.join(names)}.")
    left = [row for row in rows if row.name in (options.only or names) and row.name not in options.without]
    if not left or left[0].source != "generated":
        raise SystemExit("No generated row is left; name fewer by --without, or more by --only.")
    return left


def table(columns: Sequence[Column], rows: Mapping[str, Mapping[str, Interval | None]], bold: bool) -> str:
    """Markdown; columns without a single value are left out."""
    shown = [c for c in columns if any(cells[c.key] for cells in rows.values())]
    arrows = {1: " ↑", -1: " ↓", 0: ""}
    lines = [["", *(c.title + arrows[c.better] for c in shown)]]
    lines += [[name, *(text_of(cells[c.key], c.factor, c.digits, bold) for c in shown)] for name, cells in rows.items()]
    return markdown(lines)


def page(campaign: Campaign, results: Mapping[str, Sequence[Mapping]], times: Mapping[str, float], sheet: str) -> str:
    base, everything = next(iter(results.items()))
    absent = "" if campaign.options.encoder_without_lloc else (
        "The row *without L_loc* needs an encoder that was trained so (`--encoder-without-lloc`); none was given.\n\n"
    )  # fmt: skip
    if left_out := [row.name for row in every_row(campaign.options) if row.name not in results]:
        absent += f"Rows left out here: {', '.join(f'*{name}*' for name in left_out)}.\n\n"
    values, differences = (
        {name: {c.key: of(rows, c.key) for c in (*TABLE, *INSIDE, *TEXT)} for name, rows in results.items()}
        for of in (mean_of, lambda rows, key: difference_of(rows, everything, key))
    )
    differences.pop(base)
    pairs = {
        name: {c.key: difference_of(results[with_it], results[without], c.key) for c in (*TABLE, *OFF_THE_FACE)}
        for name, (with_it, without) in PAIRS.items()
        if with_it in results and without in results
    }
    return PAGE.format(
        command=command("ablation"), full=FULL, base=base, truth=TRUTH, copy=COPY, stranger=STRANGER, draws=DRAWS,
        missing=absent, sheet=sheet, rivals=RIVALS, views=len(VIEWS),
        people=len({row["person"] for row in everything}), prompts=campaign.options.prompts,
        settings=campaign.told_settings(), device=device_name(), **campaign.judge.cuts,
        **{f"drawn_{name}": cut for name, cut in campaign.judge.drawn_cuts.items()},
        values=table(TABLE, values, False), differences=table(TABLE, differences, True),
        pairs=table((*TABLE, *OFF_THE_FACE), pairs, True), inside=table(INSIDE, values, False),
        text=table(TEXT, values, False), text_differences=table(TEXT, differences, True), times=timetable(times),
        rounds=campaign.options.rounds,
    )  # fmt: skip


def timetable(times: Mapping[str, float]) -> str:
    """Markdown."""
    return markdown([["", "sampling time"], *([name, f"{x:.2f}"] for name, x in times.items())])


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"a CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def parser() -> argparse.ArgumentParser:
    made = arguments("ablation", identities=20, prompts=10)
    made.add_argument("--encoder-without-lloc", type=Path, metavar="FILE", help="an encoder trained with eta 0")
    made.add_argument(
        "--words", type=Path, metavar="FILE", help="state of `make words`: rows with the word that knows the person"
    )
    made.add_argument(
        "--also", type=named, action="append", default=[], metavar='"NAME: INPUT=VALUE ..."', help="one more variant"
    )
    made.add_argument("--without", nargs="+", default=[], metavar="NAME", help="rows to leave out")
    made.add_argument("--only", nargs="+", default=[], metavar="NAME", help="rows to make")
    made.add_argument("--rounds", type=int, default=5, metavar="N", help="of timing")
    made.add_argument("--sheet", type=int, default=6, metavar="N", help="people on the contact sheet")
    return made


def main(words: list[str]) -> int:
    options = parser().parse_args(words)
    logging.getLogger("omniportrait").setLevel(logging.ERROR)
    campaign, rows = Campaign(options), variants(options)
    results = campaign.measure(rows)
    if campaign.parts > 1:
        return 0
    sheet = contact_sheet(campaign.studio, rows, one_each(campaign.cases(), options.sheet))
    images = options.store if options.smoke else options.page.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    file = images / f"{options.page.stem}.jpg"
    sheet.save(file, quality=88)
    timed = [
        v for v in rows if v.source == "generated" and v.inputs.get("strength", v.inputs.get("attention_strength", 1))
    ]
    times = campaign.times(timed, rounds=1 if options.smoke else options.rounds)
    campaign.publish(page(campaign, results, times, file.name))
    return 0
