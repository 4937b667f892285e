"""Render a picture of a held-out person: `python run.py make reference --out demo/reference.png`.

By default the portrait with which the demo starts, at twice the shards' size; the model has never seen any of these
people. `demo --ic` paints that person into `make reference --person 4 --view 1 --out demo/style.png`, the first other
view of the next held-out person with the same noun.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from ..world.identity import identity
from ..world.portrait import render
from ..world.shards import HELD_OUT, view_of

SEED = 0


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="run.py make reference", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="a PNG")
    parser.add_argument("--person", type=int, default=2, help="number among the held-out people (default: 2)")
    parser.add_argument(
        "--view", type=int, default=0, help="which of the person's views; 0 is the reference (default: 0)"
    )
    parser.add_argument("--size", type=int, default=512)
    options = parser.parse_args(words)
    number = HELD_OUT + options.person
    portrait = render(identity(number, SEED), view_of(SEED, number, options.view), options.size)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(portrait.picture).save(options.out)
    print(f"{options.out}: {portrait.record['caption']}")
