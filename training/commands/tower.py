"""`python run.py train tower`: teach a small image tower to tell people apart, before it learns to speak to a denoiser.

It stands in for OpenCLIP's weights where a tower is too small for them, as the embedded model's is. The shards need an
`identity` in each sample and several pictures of each. The file is what `pretrained` of a training config takes.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main(words: list[str]) -> None:
    summary = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="run.py train tower", description=summary, allow_abbrev=False)
    parser.add_argument("--config", default="demo", metavar="FILE", help="whose tower and data (default: demo)")
    parser.add_argument("--data", nargs="+", required=True, metavar="SHARDS")
    parser.add_argument("--out", type=Path, required=True, help="the tower's weights, safetensors")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--steps", type=int, default=100_000, help="end after so many steps, if the time is not up")
    parser.add_argument("--people", type=int, default=32, help="people in a batch, two pictures of each (default: 32)")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--held-out", nargs="+", metavar="SHARDS", help="say at the end how well it tells these people")
    options = parser.parse_args(words)
    from ..pivot import config as settings
    from ..pivot.contrast import teach
    from ..pivot.retrieval import look_with_file

    try:
        overrides = {"data.shards": options.data, "out": str(options.out.parent), "rate": options.rate}
        config = settings.read(options.config, overrides | {"steps": options.steps, "batch": options.people})
        accuracy = teach(config, options.out, options.minutes, lambda line: print(line, flush=True))
        print(f"{options.out}: found {accuracy:.0%} of the last people among {options.people}", flush=True)
        if options.held_out:
            print(look_with_file(options.out, config, options.held_out))
    except ValueError as error:
        raise SystemExit(str(error)) from error
