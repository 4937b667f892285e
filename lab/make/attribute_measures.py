"""The measures that `bench spf` judges by: `python run.py make attribute-measures --out FOLDER`.

A segmenter and pairs of towers in the place of CLIP, trained on rendered pairs of people with and without something
worn; what they are worth on held-out people is printed and goes into their files. A training may learn from one pair of
towers; what comes of it is judged by the other.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from ...demo.autoencoder import PortraitAutoencoder
from ...training.loop import Budget
from ..bench.sources import ROOT
from ..learning.attribute_measures import Pairs, held_out_pairs, latents_of, render_pairs, train_segmenter, train_towers
from ..measures.segments import Segmenter, worn_share
from ..measures.separation import auc, best_threshold
from ..world.attributes import ATTRIBUTES

SEGMENTER, TOWERS, JUDGES = (
    "segmenter.safetensors",
    "latent_towers.safetensors",
    "latent_towers_of_the_judge.safetensors",
)
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
    """Train all where they are not there yet."""
    if all((out / name).is_file() for name in (SEGMENTER, TOWERS, JUDGES)):
        return
    out.mkdir(parents=True, exist_ok=True)
    pairs, tests = render_pairs(people), held_out_pairs(held_out)
    autoencoder = PortraitAutoencoder.load(checkpoint)
    recipe = f"{people} people, {steps} steps"
    segmenter = train_segmenter(pairs, Budget(steps=steps))
    right = cut(segmenter, tests)
    print("segmenter: right about an attribute, of held-out pictures with it and without anything", right)
    segmenter.save(out / SEGMENTER, {"recipe": recipe, "right": json.dumps(right)})
    latents, shown = (latents_of(autoencoder, each.pictures) for each in (pairs, tests))
    for seed, name in enumerate((TOWERS, JUDGES)):
        towers = train_towers(latents, pairs.words, Budget(steps=steps), seed)
        with torch.no_grad():
            images = towers.image(shown)
            scores = {
                attribute: round(auc(cosines[~there], cosines[there]), 3)
                for attribute, there in worn_of(tests).items()
                for cosines in [images @ towers.text(ATTRIBUTES[attribute].phrase)]
            }
        print(f"{name}: AUC on held-out people", scores)
        towers.save(out / name, {"recipe": recipe, "auc": json.dumps(scores)})


def cut(segmenter: Segmenter, tests: Pairs) -> dict[str, float]:
    """Set the segmenter's cuts where pictures with an attribute and those with nothing worn are told apart best; how
    well that is, as the mean of both shares of right answers."""
    labels = segmenter.labels(tests.pictures.float() / 255)
    bare = torch.tensor([not each["worn"] for each in tests.words])
    right = {}
    for attribute, there in worn_of(tests).items():
        shares = worn_share(labels, attribute)
        segmenter.cuts[attribute], accuracy = best_threshold(shares[bare], shares[there])
        right[attribute] = round(accuracy, 3)
    return right


def worn_of(pairs: Pairs) -> dict[str, torch.Tensor]:
    """Where each attribute is worn, boolean [N]; without those that nobody wears."""
    found = {name: torch.tensor([each["worn"] == name for each in pairs.words]) for name in ATTRIBUTES}
    return {name: there for name, there in found.items() if there.any()}
