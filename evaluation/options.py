"""The command line of `run.py evaluate`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import yaml

from .. import environment

STEPS = ("check", "generate", "score", "table", "sheet")
EMBEDDED = "embedded"
SHIPPED = ("paper", EMBEDDED)


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="run.py evaluate", description=description, allow_abbrev=False)
    made.add_argument("step", nargs="?", choices=STEPS, help="only this step; check, table and sheet make no picture")
    made.add_argument("--protocol", default="paper", metavar="NAME|FILE", help=f"{', '.join(SHIPPED)}, or a YAML file")
    made.add_argument("--method", action="append", metavar="NAME|FILE", help="a shipped one, a workflow (API) or YAML")
    made.add_argument("--people", type=Path, metavar="FOLDER", help="a photograph, or a folder, for each person")
    made.add_argument("--subject", metavar="WORD", help="what people are called whom no people.csv names")
    made.add_argument("--prompts", type=Path, metavar="FILE", help="a prompt a line, with {subject}")
    made.add_argument("--each", type=int, default=0, metavar="N", help="so many of the prompts for a person, by turns")
    made.add_argument("--images", type=int, default=1, metavar="N", help="portraits for each person and prompt")
    made.add_argument("--count", type=int, default=0, metavar="N", help="only the first N people")
    made.add_argument("--seed", type=int, default=0, metavar="N")
    made.add_argument("--checkpoint", metavar="NAME", help="as the server's Load Checkpoint lists it")
    made.add_argument("--set", type=assignment, action="append", default=[], metavar="NODE.INPUT=VALUE",
                      help="of all methods; or one of steps, cfg, sampler_name, scheduler, width, height")  # fmt: skip
    made.add_argument("--bind", type=assignment, action="append", default=[], metavar="ROLE=NODE.INPUT",
                      help="picture, photo, prompt, subject or seed, where they are not found")  # fmt: skip
    made.add_argument("--sweep", metavar="METHOD:NODE.INPUT=A,B,C", help="the method once for each value, and a curve")
    made.add_argument("--as-is", action="store_true", help="leave steps, sampler and size as the workflows have them")
    made.add_argument("--server", action="append", metavar="URL", help="a running ComfyUI (default: start one)")
    made.add_argument(
        "--patience", type=float, default=600, metavar="SECONDS", help="to wait for a server that is gone"
    )
    made.add_argument("--retry-errors", action="store_true", help="make cells again that failed")
    made.add_argument("--limit", type=int, metavar="N", help="make at most N portraits now")
    made.add_argument(
        "--part", type=part, metavar="I/N", help="only share I of N: one process of several on one folder"
    )
    made.add_argument("--weights", type=Path, default=environment.HOME / "evaluate", metavar="FOLDER",
                      help="where the columns' files are (default: .omniportrait/evaluate)")  # fmt: skip
    made.add_argument("--real", type=Path, metavar="FOLDER", help="pictures that FID compares with")
    made.add_argument("--baseline", metavar="METHOD", help="what the others are compared with (default: the first)")
    made.add_argument("--rows", type=int, default=6, metavar="N", help="people on the sheet")
    made.add_argument("--out", type=Path, default=environment.ROOT / "output" / "evaluate", metavar="FOLDER")
    made.add_argument("--page", type=Path, metavar="FILE", help="write the table there, too, with sheet and curve")
    return made


def assignment(text: str) -> tuple[str, object]:
    """NAME=VALUE, the value as YAML reads it; null takes an input away."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} should read NAME=VALUE")
    return name, yaml.safe_load(value)


def part(text: str) -> tuple[int, int]:
    """I/N, 1 to N."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"{text!r} should read 2/4: the second of four shares")
    return number, count
