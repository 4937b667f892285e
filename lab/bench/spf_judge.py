"""A customised picture beside the original's: is the attribute there, and what else has changed?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ...demo.autoencoder import PortraitAutoencoder
from ...models.faces.embedder import FaceEmbedder, find_landmarks
from ...training.spf_portrait.latent_towers import LatentTowers
from ..make.attribute_measures import JUDGES, SEGMENTER
from ..measures.segments import Segmenter, elsewhere, overlap, perceived_distance, worn_share
from ..measures.text import WEIGHTS, TextMeasure

FARTHEST = 1.2
"""Distance of two faces at which the ID column is 0."""
LEAST = 200
"""Pictures from which a Fréchet distance means something."""


class Judge:
    """measures: the folder of `make attribute-measures`. checkpoint: whose autoencoder made the pictures."""

    def __init__(self, measures: Path, checkpoint: Path) -> None:
        self.segmenter, self.towers = Segmenter.load(measures / SEGMENTER), LatentTowers.load(measures / JUDGES)
        self.autoencoder = PortraitAutoencoder.load(checkpoint)
        self.embedder, self.text = FaceEmbedder(), TextMeasure.load(WEIGHTS)

    @torch.no_grad()
    def __call__(
        self, picture: torch.Tensor, original: torch.Tensor, words: Mapping[str, str], target: str,
        attributes: Sequence[str], asked: bool,
    ) -> dict[str, float | None]:  # fmt: skip
        """Numbers of one picture [3, H, W] in 0..1. words: of the base text. target: the phrase of `attributes`, which
        count as shown if all of them are where they were asked for, or any one where none was. Their region is left out
        of `outside` and `segments`; id is None where a face is missing in either."""
        both = torch.stack([picture, original])
        labels = self.segmenter.labels(both)
        kept = elsewhere(labels[:1])
        shares = {name: float(worn_share(labels[:1], name)) for name in attributes}
        shown = [share > self.segmenter.cuts[name] for name, share in shares.items()]
        vectors = self.towers.image(self.autoencoder.encode(both * 2 - 1))
        found = [find_landmarks(each) for each in both]
        faces = None
        if all(each is not None for each in found):
            faces = self.embedder.embed(both, torch.stack(found))
        right = self.text.agreement(picture[None], [words], found[:1])
        one, other = picture[None], original[None]
        return {
            "area": sum(shares.values()),
            "shown": float(all(shown) if asked else any(shown)),
            "outside": float(perceived_distance(self.segmenter, one, other, kept)),
            "whole": float(perceived_distance(self.segmenter, one, other)),
            "segments": float(overlap(labels[:1], labels[1:], kept)),
            "id": None if faces is None else 1 - float((faces[0] - faces[1]).norm()) / FARTHEST,
            "clip_i": float(vectors[0] @ vectors[1]),
            "clip_t": float(vectors[0] @ self.towers.text(target)),
            "face": float(found[0] is not None),
            "words": float(torch.stack(list(right.values())).float().mean()),
        }

    @torch.no_grad()
    def deep(self, pictures: torch.Tensor) -> torch.Tensor:
        """[N, 112]: what the Fréchet distance compares."""
        parts = [self.segmenter.features(part)[-1].mean((2, 3)) for part in pictures.split(32)]
        return torch.cat(parts)
