"""`python run.py train evaluate`: what a pivot encoder does, on people it was not trained on.

For each encoder file, with 95% intervals over identities: how well the attention of e_mix covers the true face (IoU),
how much more the denoiser errs in a face with a stranger's reference than with the own, and how near the portraits it
makes are to their reference, against other people's references.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from .evaluation import Evaluation, lines


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="run.py train evaluate", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("encoders", nargs="+", type=Path, help="pivot encoder files, such as with and without L_loc")
    parser.add_argument("--checkpoint", required=True, help="the base model")
    parser.add_argument("--data", nargs="+", required=True, help="shards of people it was not trained on")
    parser.add_argument("--config", default="demo", help="a config: how to read the shards (default: demo)")
    parser.add_argument("--people", type=int, default=50, help="how many people (default: 50)")
    parser.add_argument("--views", type=int, default=4, help="pictures of each, but for portraits (default: 4)")
    parser.add_argument("--portraits", type=int, default=2, help="portraits of each, or 0 (default: 2)")
    parser.add_argument("--steps", type=int, default=30, help="sampling steps (default: 30, the demo's)")
    parser.add_argument("--cfg", type=float, default=4.0, help="guidance scale (default: 4, the demo's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args(words)
    logging.basicConfig(level=logging.WARNING)
    try:
        evaluation = Evaluation.open(options)
        results = {str(path): evaluation.measure(path) for path in [None, *options.encoders]}
    except ValueError as error:
        raise SystemExit(str(error)) from error
    print("\n".join(lines(results)))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
