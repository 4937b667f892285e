"""RB-Guidance on every sampler, scheduler, way of working, family and weight type of the ComfyUI at hand, by all pairs.

    python run.py bench matrix                    # the whole table, some hundreds of cells; writes docs/matrix.md
    python run.py bench matrix --smoke            # every value once and every mode in each family: minutes
    COMFYUI_PATH=/path/to/ComfyUI python run.py bench matrix --smoke      # the same on another core

Resumable: results are appended to a JSON-lines file as they come, and a second call tries what is missing or was
broken. Results of another ComfyUI, PyTorch or state of the pack's code do not count. `--part 1/2` and `--part 2/2`
share the work between two processes; the one that ends last writes the whole page. Ends with status 1 if a cell is
broken.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from omniportrait import run

run.use_comfyui()
ROOT = Path(run.__file__).resolve().parent
sys.path[:0] = [str(ROOT / "tests" / "comfy" / "lib"), str(Path(__file__).parent)]

import _cells  # noqa: E402
import comfy.utils  # noqa: E402
import small  # noqa: E402
import torch  # noqa: E402
from _cells import Cell, Result  # noqa: E402
from _pairs import array  # noqa: E402
from omniportrait.guidance.settings import Settings  # noqa: E402

SOURCES = ("guidance", "models", "nodes", "tests/comfy/lib")
"""Code that a cell's result depends on, beside the cell's own."""
SMOKE = [("sampler",), ("scheduler",), ("mode", "family"), ("dtype", "family"), ("guided_pass", "mode")]
HANDFUL = [("mode",), ("scheduler",), ("dtype", "family"), ("guided_pass", "family")]
"""What the tests try each time: a minute of one core."""
TABLES = (
    ("family", "mode"),
    ("dtype", "mode"),
    ("guided_pass", "mode"),
    ("family", "sampler"),
    ("dtype", "scheduler"),
)
"""Column and row of each table on the page."""


def cells(together: list[tuple[str, ...]] | None = None) -> list[Cell]:
    """The fewest that hold all that shall come together: all pairs by default, with every sampler and every mode once a
    family among them."""
    return [Cell(**row) for row in array(_cells.columns(), together)]


def surroundings() -> str:
    """What a result depends on besides its cell."""
    source = hashlib.sha256()
    files = (path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py")))
    for path in [*files, Path(_cells.__file__)]:
        source.update(path.read_bytes())
    return f"ComfyUI {core_version()}, PyTorch {torch.__version__}, pack {source.hexdigest()[:12]}"


def core_version() -> str:
    try:
        from comfyui_version import __version__
    except ImportError:
        return "unknown"
    return __version__


def known_results(path: Path, where: str) -> dict[str, Result]:
    """Results of this surrounding by cell key; a line that was cut short is left out."""
    results = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        place, key = entry.pop("where"), entry.pop("key")
        if place == where:
            results[key] = Result(**entry)
    return results


def work(todo: list[Cell], path: Path, where: str) -> None:
    """Try each cell and append its result at once."""
    vae, comfy.utils.PROGRESS_BAR_ENABLED = small.vae(), False
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(todo, 1):
        result = _cells.try_cell(cell, vae)
        with path.open("a") as file:
            file.write(json.dumps({"where": where, "key": cell.key, **asdict(result)}) + "\n")
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
        "The cells are an all-pairs array: each two of sampler, scheduler, mode, family, weight type and guided pass "
        "meet in at least one cell, so every sampler and every mode occurs in each family. The models have SD1.5's "
        "and SDXL's structure at a tenth of the width, with random weights, and run on ComfyUI's own nodes. A cell is "
        "ok when it runs, the same seed gives the same bits on a freshly loaded model, the picture is finite, at "
        "least one call was guided and changed it, strength 0 is bit-equal to plain, and so is a plain run after a "
        f"guided one. A run has {_cells.STEPS} steps"
        f"{''.join(f', with {name} {n} to come into the default window' for name, n in _cells.MORE_STEPS.items())}. "
        f"Those of {', '.join(sorted(_cells.LATE))} all lie before the window, so there u is 1. In inpainting "
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
    values = _cells.columns()
    lines = [f"| {down} | {' | '.join(values[across])} |", "|---" * (1 + len(values[across])) + "|"]
    for row in values[down]:
        entries = []
        for column in values[across]:
            here = [r for c, r in tried if getattr(c, down) == row and getattr(c, across) == column]
            entries.append(f"{sum(r.status == 'ok' for r in here)} / {len(here)}" if here else "")
        lines.append(f"| {row} | {' | '.join(entries)} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="run.py bench matrix")
    parser.add_argument("--smoke", action="store_true", help="the subset for CI and for other cores; writes no page")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="this process does every N-th cell")
    parser.add_argument("--results", type=Path, default=ROOT / "output" / "matrix.jsonl", metavar="FILE")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "matrix.md", metavar="FILE")
    options = parser.parse_args()
    logging.getLogger("omniportrait").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows, where = cells(SMOKE if options.smoke else None), surroundings()
    results = known_results(options.results, where)
    part, parts = map(int, options.part.split("/"))
    todo = [cell for cell in rows if cell.key not in results or results[cell.key].status == "broken"]
    print(f"{where}: {len(rows)} cells, {len(todo)} to try", flush=True)
    work(todo[part - 1 :: parts], options.results, where)
    results = known_results(options.results, where)
    if not options.smoke:
        options.page.parent.mkdir(parents=True, exist_ok=True)
        options.page.write_text(page(rows, results, where))
        print(f"wrote {options.page}")
    broken = [cell.key for cell in rows if cell.key in results and results[cell.key].status == "broken"]
    print(f"{sum(cell.key in results for cell in rows)} of {len(rows)} cells tried, {len(broken)} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
