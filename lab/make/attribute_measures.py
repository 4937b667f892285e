"""The measures that `bench spf` judges by: `python run.py make attribute-measures --out FOLDER`.

A segmenter and a pair of towers in the place of CLIP, trained on rendered pairs of people with and without something
worn; what they are worth on held-out people is printed and goes into their files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ...demo.autoencoder import PortraitAutoencoder
from ...training.loop import Budget
from ..bench.sources import ROOT
from ..learning.attribute_measures import held_out_pairs, latents_of, render_pairs, train_segmenter, train_towers
from ..measures.segments import SHOWN, worn_share
from ..measures.separation import auc
from ..world.attributes import ATTRIBUTES

SEGMENTER, TOWERS = "segmenter.safetensors", "latent_towers.safetensors"
DEMO = ROOT / "demo" / "weights" / "omniportrait_demo.safetensors"


def main(words: list[str]) -> None:
    summary = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="run.py make attribute-measures", description=summary, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder of the two files")
    parser.add_argument("--people", type=int, default=400, help="rendered, each in two pictures (default: 400)")
    parser.add_argument("--held-out", type=int, default=48, help="people to judge them by (default: 48)")
    parser.add_argument("--steps", type=int, default=400, help="of either training (default: 400)")
    parser.add_argument("--checkpoint", type=Path, default=DEMO, help="whose latents the towers read")
    options = parser.parse_args(words)
    make(options.out, options.people, options.held_out, options.steps, options.checkpoint)


def make(out: Path, people: int, held_out: int, steps: int, checkpoint: Path) -> None:
    """Train both where they are not there yet."""
    if (out / SEGMENTER).is_file() and (out / TOWERS).is_file():
        return
    out.mkdir(parents=True, exist_ok=True)
    pairs, tests = render_pairs(people), held_out_pairs(held_out)
    autoencoder = PortraitAutoencoder.load(checkpoint)
    segmenter = train_segmenter(pairs, Budget(steps=steps))
    shares = worn_share(segmenter.labels(tests.pictures.float() / 255))
    worn = torch.tensor([bool(each["worn"]) for each in tests.words])
    right = ((shares > SHOWN) == worn).float().mean()
    told = {"recipe": f"{people} people, {steps} steps", "right": f"{right:.3f}"}
    print(f"segmenter: says of {right:.1%} of held-out pictures rightly whether something is worn")
    segmenter.save(out / SEGMENTER, told)
    towers = train_towers(latents_of(autoencoder, pairs.pictures), pairs.words, Budget(steps=steps))
    scores = {}
    with torch.no_grad():
        images = towers.image(latents_of(autoencoder, tests.pictures))
        for name, attribute in ATTRIBUTES.items():
            there = torch.tensor([each["worn"] == name for each in tests.words])
            cosines = images @ towers.text(attribute.phrase)
            if there.any():
                scores[name] = round(auc(cosines[~there], cosines[there]), 3)
    print("towers: AUC on held-out people", scores)
    towers.save(out / TOWERS, {"recipe": told["recipe"], "auc": json.dumps(scores)})
