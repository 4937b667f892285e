"""The paper's Table 2 on the embedded model: what each part of OmniPortrait does for people it has never seen.

    python run.py bench ablation                                    # 20 held-out people x 10 held-out prompts
    python run.py bench ablation --identities 50 --prompts 30 --part 1/2    # half of the larger table; no page
    python run.py bench ablation --encoder-without-lloc FILE        # with the row "without L_loc"
    python run.py bench ablation --also "gain 200: gain=200 clip=0.5"       # one more row
    python run.py bench ablation --smoke                            # a handful, for CI

Every variant starts from the same noise and runs through the pack's own nodes, sampled as the demo's workflow samples;
`--set` has the last word. Resumable: pictures and numbers are kept in output/portraits, and the same call makes what is
missing; after all parts, the call without `--part` finds everything made and writes docs/ablation.md and its sheet.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omniportrait import run

run.use_comfyui()
sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402
from _campaign import Campaign, arguments, assignment, command  # noqa: E402
from _intervals import difference_of, mean_of  # noqa: E402
from _portraits import Case, Variant, sitter, wanted  # noqa: E402
from omniportrait.demo.measures.intervals import DRAWS, Interval  # noqa: E402
from omniportrait.demo.measures.text import HEADS  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

FULL, TRUTH = "full", "drawn by the portrait world"
COPY = "drawn, through the autoencoder"


@dataclass(frozen=True)
class Column:
    """factor, digits: how its values are shown. better: +1 where more is better, -1 where less is, 0 for neither."""

    key: str
    title: str
    factor: float
    digits: int
    better: int


TABLE = (
    Column("distance", "distance", 1, 3, -1),
    Column("same", "same person, %", 100, 1, 1),
    Column("similarity", "crop similarity", 1, 3, 1),
    Column("kept", "moles kept, %", 100, 1, 1),
    Column("contrast", "mole contrast", 1, 2, 1),
    Column("text", "text, %", 100, 1, 1),
    Column("change", "background change, /255", 1, 2, -1),
    Column("iou", "mask IoU", 1, 3, 1),
    Column("seconds", "seconds", 1, 2, -1),
    Column("face", "face found, %", 100, 1, 1),
)
TEXT = tuple(Column(head, f"{head}, %", 100, 1, 1) for head in HEADS)

PAGE = """# What each part of OmniPortrait does

Made by `{command}`; do not edit.

{people} held-out people × {prompts} held-out prompts on the embedded model ({settings}). Every variant starts from the
same noise. Means over the people with 95% intervals, by resampling the people {draws:,} times.

- **full** is the pack with its trained pivot encoder and RB-Guidance at the `calibrated` strength. Each other row
  leaves out or changes one thing; *literal strength* is Eq. 8 to 11 as printed. *{truth}* is no generated picture but a
  render of the same person as the prompt asks: what the measures give a perfect portrait. *{copy}* is that render
  encoded and decoded by the model's own autoencoder: the most that any picture of this model can reach.
- **distance**: of the face to the reference portrait's in an embedding that no training has seen (lower is nearer);
  **same person**: it is below the cut of {identity:g}. A picture without a face is not the same person, and
  has no distance.
- **crop similarity**: mean cosine, place by place over the aligned face, of that network's inner features: how alike
  the faces look rather than who they are. It stands for the paper's CLIP-I, for whose weights there is no room here.
- **moles kept**: of the reference's moles, those whose place is darker than the skin around it by more than
  {detail:g} deviations; **mole contrast**: the mean of that number.
- Both cuts are those [calibrated](measures.md) on renders that went through the autoencoder, as every generated picture
  did; *{truth}*, which did not, has its own ({drawn_identity:g} and {drawn_detail:g}).
- **text**: expression, subject, garment, its colour and background, as two classifiers of pictures see them.
- **background change**: mean absolute difference to the same variant without RB-Guidance, outside of both faces.
- **mask IoU**: M_gen of the last guided step and the face's oval in the finished picture.
- **seconds**: of sampling, the reference's features made anew each time, on {device}.

{missing}## Values

{values}

## Differences to {full}

On the same people, prompts and noise. **Bold**: 0 is outside of the 95% interval.

{differences}

## Text by word

{text}

## Pictures

![Reference and variants](images/{sheet})
"""


def variants(options: argparse.Namespace) -> list[Variant]:
    """The rows of the table, `full` first."""
    encoder = options.encoder
    rows = [
        Variant(FULL, encoder),
        Variant("without RB-Guidance", encoder, {"strength": 0.0}),
        Variant("without pivot encoder", None),
        Variant("without both", None, {"strength": 0.0}),
        Variant("without background masking", encoder, {"background_masking": False}),
        Variant("literal strength", encoder, {"mode": "literal"}),
        *(Variant(name, encoder, inputs) for name, inputs in options.also),
    ]
    if options.encoder_without_lloc:
        rows.insert(1, Variant("without L_loc", options.encoder_without_lloc))
    return [*rows, Variant(COPY, source="copied"), Variant(TRUTH, source="drawn")]


def named(text: str) -> tuple[str, dict[str, object]]:
    """`NAME: INPUT=VALUE …` of --also."""
    name, colon, words = text.rpartition(":")
    if not colon or not words.split():
        raise argparse.ArgumentTypeError(f"{text!r} should read NAME: INPUT=VALUE ...")
    return name.strip(), dict(map(assignment, words.split()))


def table(columns: Sequence[Column], rows: Mapping[str, Mapping[str, Interval | None]], bold: bool) -> str:
    """Markdown; columns without a single value are left out."""
    shown = [c for c in columns if any(cells[c.key] for cells in rows.values())]
    arrows = {1: " ↑", -1: " ↓", 0: ""}
    lines = [["", *(c.title + arrows[c.better] for c in shown)], ["---"] * (len(shown) + 1)]
    lines += [[name, *(cell(c, cells[c.key], bold) for c in shown)] for name, cells in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(column: Column, value: Interval | None, bold: bool) -> str:
    if value is None:
        return "–"
    sign = "+" if bold else ""
    mean, low, high = (f"{x * column.factor:{sign}.{column.digits}f}" for x in (value.mean, value.low, value.high))
    mean = f"**{mean}**" if bold and value.significant else mean
    return f"{mean} [{low}, {high}]"


def page(campaign: Campaign, results: Mapping[str, Sequence[Mapping]], sheet: str) -> str:
    everything = results[FULL]
    absent = "" if campaign.options.encoder_without_lloc else (
        "The row *without L_loc* needs an encoder that was trained so (`--encoder-without-lloc`); none was given.\n\n"
    )  # fmt: skip
    values, differences = (
        {name: {c.key: of(rows, c.key) for c in (*TABLE, *TEXT)} for name, rows in results.items()}
        for of in (mean_of, lambda rows, key: difference_of(rows, everything, key))
    )
    differences.pop(FULL)
    return PAGE.format(
        command=command("ablation"), full=FULL, truth=TRUTH, copy=COPY, draws=DRAWS, missing=absent, sheet=sheet,
        people=len({row["person"] for row in everything}), prompts=len({row["prompt"] for row in everything}),
        settings=campaign.told_settings(), device=device_name(), **campaign.judge.cuts,
        **{f"drawn_{name}": cut for name, cut in campaign.judge.drawn_cuts.items()},
        values=table(TABLE, values, False), differences=table(TABLE, differences, True),
        text=table(TEXT, values, False),
    )  # fmt: skip


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"a CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def contact_sheet(campaign: Campaign, rows: Sequence[Variant], cases: Sequence[Case], side: int = 192) -> Image.Image:
    """A line for each case: the reference, then the variants; above them their names, below the prompt."""
    head, foot = 18, 16
    sheet = Image.new("RGB", (side * (len(rows) + 1), head + len(cases) * (side + foot)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(["reference", *(variant.name for variant in rows)]):
        draw.text((column * side + 4, 3), name, fill="black")
    for line, case in enumerate(cases):
        prompt, subject = wanted(case)
        pictures = [torch.from_numpy(sitter(case.person).picture.copy()).movedim(-1, 0).float() / 255]
        pictures += [campaign.studio.portrait(case, variant).picture for variant in rows]
        top = head + line * (side + foot)
        for column, picture in enumerate(pictures):
            pixels = (picture.movedim(0, -1) * 255).round().byte().numpy()
            sheet.paste(Image.fromarray(pixels).resize((side, side), Image.LANCZOS), (column * side, top))
        draw.text((4, top + side + 1), prompt.text(subject), fill="black")
    return sheet


def shown_cases(cases: Sequence[Case], count: int) -> list[Case]:
    """One of each person, each with another prompt."""
    people = list(dict.fromkeys(case.person for case in cases))[:count]
    prompts = list(dict.fromkeys(case.prompt for case in cases))
    return [Case(person, prompts[i % len(prompts)]) for i, person in enumerate(people)]


def parser() -> argparse.ArgumentParser:
    made = arguments("ablation", identities=20, prompts=10)
    made.add_argument("--encoder-without-lloc", type=Path, metavar="FILE", help="an encoder trained with eta 0")
    made.add_argument(
        "--also", type=named, action="append", default=[], metavar='"NAME: INPUT=VALUE ..."', help="one more variant"
    )
    made.add_argument("--sheet", type=int, default=6, metavar="N", help="people on the contact sheet")
    return made


def main() -> int:
    options = parser().parse_args()
    logging.getLogger("omniportrait").setLevel(logging.ERROR)
    campaign, rows = Campaign(options), variants(options)
    results = campaign.measure(rows)
    if campaign.parts > 1:
        return 0
    sheet = contact_sheet(campaign, rows, shown_cases(campaign.cases(), options.sheet))
    images = options.store if options.smoke else options.page.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    file = images / f"{options.page.stem}.png"
    sheet.save(file)
    campaign.publish(page(campaign, results, file.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
