"""Render the portrait world: `python run.py make pictures --out FOLDER`. Interrupted, the same command goes on."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..world.shards import contact_sheet, plan, write_all
from ..world.view import FRAMINGS


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="run.py make pictures", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--identities", type=int, default=2000, help="people to train on (default: 2000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them, in whole hundreds")
    parser.add_argument("--held-out", type=int, default=50, help="people never trained on (default: 50)")
    parser.add_argument("--views", type=int, default=8, help="pictures of each, beside the reference (default: 8)")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--framing", choices=FRAMINGS, default="sitter", help="how near the camera is")
    parser.add_argument("--places", action="store_true", help="with which point of a face each place shows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--sheet", type=Path, help="only write a contact sheet of eight people to this file")
    options = parser.parse_args(words)
    shards = plan(
        options.out, options.identities, options.held_out, options.views, options.size, options.seed,
        framing=options.framing, start=options.first, places=options.places,
    )  # fmt: skip
    if options.sheet:
        options.sheet.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(shards[-1], 8, 7).save(options.sheet)
        print(f"{options.sheet}: eight people, the reference first")
        return
    for done, path in enumerate(write_all(shards, options.workers), 1):
        print(f"{done}/{len(shards)} {path}", flush=True)
