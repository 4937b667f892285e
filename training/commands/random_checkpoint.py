"""`python run.py train random-checkpoint --family sd15 --out FILE`: a checkpoint of true size with random weights.

It makes noise and nothing else, but it costs what a real one costs: with it `train pivot-encoder … --dry-run` says what
a machine takes, before anything is downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ... import environment
from ..files import halved, write_tensors
from ..random_weights import UNETS, parts, prefixed, randomise


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="run.py train random-checkpoint", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--family", choices=sorted(UNETS), required=True)
    parser.add_argument("--out", type=Path, required=True, help="the file: 2 GB for sd15, 7 GB for sdxl")
    options = parser.parse_args(words)
    environment.use_comfyui()
    state = {}
    for seed, (prefix, module) in enumerate(parts(options.family).items()):
        weights = randomise(module, seed)
        state |= prefixed(prefix, halved(weights))
    write_tensors(options.out, state)
    print(f"{options.out}: {sum(value.numel() for value in state.values()) / 1e6:.0f} million random weights")
