"""`python run.py train shards PHOTOS --out FOLDER`: a folder of captioned photographs into training shards.

Each photograph has a text file of the same name with its caption (.txt or .caption), or a line in captions.jsonl:
{"file": "a/1.jpg", "caption": "a woman in a forest", "subject": "woman"}. The pack's own face finder makes box and
mask. Shards that are there are left as they are, and their photographs out: so an interrupted command goes on, and
photographs that came later get new shards. Delete the folder to make all anew.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path


def main(words: list[str]) -> None:
    from ..dataset.photos import LEFT_OUT, make_shards, options_of

    summary = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="run.py train shards", description=summary, allow_abbrev=False)
    parser.add_argument("photos", type=Path, help="folder of photographs, with subfolders")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--subject", nargs="+", metavar="WORD", help="words for the person (default: common ones)")
    parser.add_argument("--people", action="store_true", help="each subfolder is one person: pictures of it are paired")
    parser.add_argument(
        "--any-picture", action="store_true", help="look for no noun and no face (for train spf-portrait)"
    )
    parser.add_argument("--size", type=int, default=1000, help="photographs in a shard (default: 1000)")
    parser.add_argument("--max-side", type=int, default=2048, help="larger photographs are reduced (default: 2048)")
    parser.add_argument("--facexlib", type=Path, nargs="*", default=[], metavar="FOLDER", help="where its files lie")
    parser.add_argument("--workers", type=int, default=4)
    given = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        made = make_shards(options_of(given))
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if made.left.names:
        print("Left out:", *made.left.lines(), f"All of them are listed in {given.out / LEFT_OUT}.", sep="\n")
    if not made.kept and not made.before:
        raise SystemExit(f"None of the photographs in {given.photos} can be used, for the reasons above.")
    before = f"; {made.before} were in older shards already, which stay as they are" if made.before else ""
    print(f"{made.kept} photographs in {made.shards} new shards in {given.out}{before}: train with --data {given.out}")
