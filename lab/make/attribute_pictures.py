"""A data set for `train spf-portrait`: rendered portraits of people who all wear one thing, biased on purpose.

python run.py make attribute-pictures --attribute hat --out hat
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..world.attributes import ATTRIBUTES
from ..world.shards import write_portraits
from ..world.tailored import Tailored
from ..world.view import FRAMINGS, LIGHTS


def main(words: list[str]) -> None:
    summary = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="run.py make attribute-pictures", description=summary, allow_abbrev=False)
    parser.add_argument("--attribute", choices=ATTRIBUTES, required=True, nargs="+", help="what everybody wears")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shard")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=192)
    parser.add_argument("--light", choices=LIGHTS, default="evening", help="the only one there is (default: evening)")
    parser.add_argument("--places", type=int, default=5, help="how many backgrounds there are (default: 5)")
    parser.add_argument("--framing", choices=FRAMINGS, default="close")
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args(words)
    pictures = Tailored(
        tuple(options.attribute), options.people, options.pictures, light=options.light, places=options.places,
        framing=options.framing, size=options.size,
    )  # fmt: skip
    path = options.out / "train-000000.tar"
    if path.exists():
        raise SystemExit(f"{path} is there already: choose another --out.")
    write_portraits(path, pictures)
    print(f"{path}: {options.pictures} pictures; train with --data {options.out}")
