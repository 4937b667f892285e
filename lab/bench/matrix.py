"""RB-Guidance, by itself and with Reference Attention, on every sampler, scheduler, way of working, family and weight
type of the ComfyUI at hand, by all pairs.

    python run.py bench matrix                    # the whole table, hundreds of cells; writes docs/results/matrix.md
    python run.py bench matrix --smoke            # every value once and every mode in each family: minutes
    COMFYUI_PATH=/path/to/ComfyUI python run.py bench matrix --smoke      # the same on another core

Resumable: results are appended to a JSON-lines file as they come, and a second call tries what is missing or was
broken. Results of another ComfyUI, PyTorch or state of the pack's code do not count. `--part 1/2` and `--part 2/2`
share the work between two processes, which may start at different times: each has its fixed half of the table. The
page is written once no cell is untried, so by the part that ends last. Ends with status 1 if a cell is broken or
untried: any of the whole run, or of a part's own.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import comfy.utils
import torch

from ...guidance.omniportrait.settings import Settings
from ..testbed import small
from . import cells as wanted
from .cells import Cell, Result
from .kept import keep, kept, part_of
from .pairs import array
from .sources import ROOT, of_source

SOURCES = ("guidance", "backbone", "sampling", "models", "nodes", "lab/testbed")
"""Code that a cell's result depends on, beside the cell's own."""
SMOKE = [("sampler",), ("scheduler",), ("mode", "family"), ("dtype", "family"), ("guided_pass", "mode"),
         ("attention", "family")]  # fmt: skip
TABLES = (
    ("family", "mode"),
    ("dtype", "mode"),
    ("guided_pass", "mode"),
    ("attention", "mode"),
    ("family", "sampler"),
    ("dtype", "scheduler"),
)
"""Column and row of each table on the page."""


def cells(together: list[tuple[str, ...]] | None = None) -> list[Cell]:
    """The fewest that hold all that shall come together: all pairs by default, with every sampler and every mode once a
    family among them."""
    return [Cell(**row) for row in array(wanted.columns(), together)]


def surroundings() -> str:
    """What a result depends on besides its cell."""
    source = of_source(*(ROOT / folder for folder in SOURCES), wanted.__file__)
    return f"ComfyUI {core_version()}, PyTorch {torch.__version__}, pack {source[:12]}"


def core_version() -> str:
    try:
        from comfyui_version import __version__
    except ImportError:
        return "unknown"
    return __version__


def known_results(path: Path, where: str) -> dict[str, Result]:
    """Results of this surrounding by cell key; a line that was cut short is left out."""
    rows = kept(path, lambda row: ((row.pop("where"), row.pop("key")), Result(**row)))
    return {key: result for (place, key), result in rows.items() if place == where}


def work(todo: list[Cell], path: Path, where: str) -> None:
    """Try each cell and append its result at once."""
    vae, comfy.utils.PROGRESS_BAR_ENABLED = small.vae(), False
    for number, cell in enumerate(todo, 1):
        result = wanted.try_cell(cell, vae)
        keep(path, {"where": where, "key": cell.key, **asdict(result)})
        told = f"{result.status:6} {result.seconds:6.1f} s  {cell.key}"
        print(f"{number}/{len(todo)} {told}{'  ' + result.why if result.why else ''}", flush=True)


def page(rows: list[Cell], results: dict[str, Result], where: str) -> str:
    """The table for people, in Markdown."""
    tried = [(cell, results[cell.key]) for cell in rows if cell.key in results]
    counts = Counter(result.status for _, result in tried)
    lines = [
        "# Compatibility matrix",
        "",
        "Made by `python run.py bench matrix`; do not edit.",
        "",
        f"{where}. {len(tried)} of {len(rows)} cells tried: {counts['ok']} ok, {counts['broken']} broken, "
        f"{counts['core']} where core's own plain run fails or is not finite "
        f"({sum(result.seconds for _, result in tried) / 60:.0f} minutes of one core).",
        "",
        "The cells are an all-pairs array: each two of sampler, scheduler, mode, family, weight type, guided pass "
        "and Reference Attention (on or off) meet in at least one cell, so every sampler and every mode occurs in "
        "each family. The models have SD1.5's and SDXL's structure at a tenth of the width, with random weights, "
        "and run on ComfyUI's own nodes. A cell is ok when it runs, the same seed gives the same bits on a freshly "
        "loaded model, the picture is finite, at least one call was guided and changed it, strength 0 is bit-equal "
        "to plain, and so is a plain run after a guided one. With Reference Attention, that by itself has to change "
        "the picture, and RB-Guidance has to change it "
        f"further. A run has {wanted.STEPS} steps"
        f"{''.join(f', with {name} {n} to come into the default window' for name, n in wanted.MORE_STEPS.items())}. "
        f"Those of {', '.join(sorted(wanted.LATE))} all lie before the window, so there u is 1. In inpainting "
        "the person's region is the inpainted part. `fp8` weights compute in bf16. The guidance is the nodes' own but "
        f"for the threshold of the mask: a gradient at every {Settings().every} sigmas, a cap of {Settings().clip}.",
    ]
    for across, down in TABLES:
        lines += ["", f"## {down.capitalize()} and {across}", "", "Cells that are ok / tried.", ""]
        lines += _table(tried, across, down)
    titles = {"broken": "Broken", "core": "Where core's own plain run fails", "ok": "Ok, but not guided everywhere"}
    for status, title in titles.items():
        found = [f"- {cell.key}: {result.why}" for cell, result in tried if result.status == status and result.why]
        lines += ["", f"## {title}", "", *(found or ["None."])]
    return "\n".join(lines) + "\n"


def _table(tried: list[tuple[Cell, Result]], across: str, down: str) -> list[str]:
    values = wanted.columns()
    lines = [f"| {down} | {' | '.join(values[across])} |", "|---" * (1 + len(values[across])) + "|"]
    for row in values[down]:
        entries = []
        for column in values[across]:
            here = [r for c, r in tried if getattr(c, down) == row and getattr(c, across) == column]
            entries.append(f"{sum(r.status == 'ok' for r in here)} / {len(here)}" if here else "")
        lines.append(f"| {row} | {' | '.join(entries)} |")
    return lines


def carry_out(rows: list[Cell], options: argparse.Namespace) -> int:
    """Try what this part has to do and tell how the whole table stands then: the exit status."""
    where, (part, parts) = surroundings(), options.part
    # The list of all cells is sliced, not that of the cells still to do: that list gets shorter while other parts work,
    # and a part that started later would slice another one.
    mine = rows[part - 1 :: parts]
    known = known_results(options.results, where)
    todo = [cell for cell in mine if cell.key not in known or known[cell.key].status == "broken"]
    print(f"{where}: {len(rows)} cells, {len(mine)} of them in part {part}/{parts}, {len(todo)} to try", flush=True)
    work(todo, options.results, where)
    results = known_results(options.results, where)
    untried = [cell for cell in rows if cell.key not in results]
    if not options.smoke and not untried:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(page(rows, results, where))
        print(f"wrote {options.page}")
    return told(rows, mine, results)


def told(rows: list[Cell], mine: list[Cell], results: dict[str, Result]) -> int:
    """Print how the table and this part stand; the exit status. A part answers for its own cells alone, since those of
    the others may be still to come; the part 1/1 is the whole table."""
    for name, those in (("the whole table", rows), ("this part", mine)):
        tried = [results[cell.key] for cell in those if cell.key in results]
        broken, untried = sum(result.status == "broken" for result in tried), len(those) - len(tried)
        print(f"{name}: {len(tried)} of {len(those)} cells tried, {broken} broken, {untried} UNTRIED")
    return 1 if broken or untried else 0  # the counts of this part, which came last


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench matrix", allow_abbrev=False)
    parser.add_argument("--smoke", action="store_true", help="the subset for CI and for other cores; writes no page")
    parser.add_argument("--part", type=part_of, default="1/1", metavar="I/N", help="this process does every N-th cell")
    parser.add_argument("--results", type=Path, default=ROOT / "output" / "matrix.jsonl", metavar="FILE")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "matrix.md", metavar="FILE")
    options = parser.parse_args(words)
    logging.getLogger("omniportrait").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    return carry_out(cells(SMOKE if options.smoke else None), options)
