"""Train the text measure on rendered portraits and calibrate all measures on held-out ones, as they are and through the
autoencoder: `python run.py make measures --data FOLDER --vae FILE`. Writes docs/results/measures.md.

Short rather than resumable: interrupted in training it begins again; once that is done, `--minutes 0` only calibrates.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ...demo.autoencoder import PortraitAutoencoder
from ...training.files import write_whole
from ...training.loop import Budget
from ..learning.loop import pick_device
from ..learning.pictures import open_pictures
from ..measures.held_out import Renders
from ..measures.report import calibrate, page
from ..measures.separation import THRESHOLDS
from ..measures.text import WEIGHTS, TextMeasure
from ..measures.text_training import train

PAGE = Path(__file__).parents[2] / "docs" / "results" / "measures.md"
DEMO = WEIGHTS.parent / "omniportrait_demo.safetensors"
CARD = {
    "model": "OmniPortrait demo: which background, garment, colour, expression and subject a picture shows",
    "source": "trained on the demo's own renders alone (lab/make/measures.py)",
    "license": "CC0-1.0",
}


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="run.py make measures", description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, help="folder with train-*.tar and held_out-*.tar")
    parser.add_argument("--out", type=Path, default=WEIGHTS.parent, help="folder of the weights and thresholds")
    parser.add_argument("--minutes", type=float, default=8.0, help="training time; 0: only calibrate what is there")
    parser.add_argument(
        "--vae", type=Path, default=DEMO, help="of `make vae`, or a checkpoint of `make base` (default: the one here)"
    )
    parser.add_argument("--page", type=Path, default=PAGE, help="where the tables go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(words)
    file = options.out / WEIGHTS.name
    if options.minutes > 0:
        pictures = open_pictures(options.data)
        model = train(pictures, Budget(options.minutes), pick_device(options.device), options.seed)
        recipe = f"{len(pictures)} renders, {options.minutes:g} minutes of training, seed {options.seed}"
        model.save(file, {**CARD, "recipe": recipe})
    found = calibrate(held_out(options.data), TextMeasure.load(file), PortraitAutoencoder.load(options.vae))
    cuts = json.dumps(found.thresholds(), indent=1) + "\n"
    write_whole(options.out / THRESHOLDS.name, cuts.encode())
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(page(found), encoding="utf-8")
    print(options.page.read_text(encoding="utf-8"))


def held_out(folder: Path) -> Renders:
    pictures = open_pictures(folder, "held_out")
    records = [record for records in pictures.records for record in records]
    return Renders(pictures.batch(torch.arange(len(pictures)))[0].contiguous(), records)
