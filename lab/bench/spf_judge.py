"""A customised picture beside the original's: is the attribute there, and what else has changed?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ...demo.autoencoder import PortraitAutoencoder
from ...models.faces.embedder import FaceEmbedder, find_landmarks
from ...training.spf_portrait.latent_towers import LatentTowers
from ..make.attribute_measures import SEGMENTER, TOWERS
from ..measures.segments import SHOWN, Segmenter, elsewhere, overlap, perceived_distance, worn_share
from ..measures.text import WEIGHTS, TextMeasure

FARTHEST = 1.2
"""Distance of two faces at which the ID column is 0."""
LEAST = 200
"""Pictures from which a Fréchet distance means something."""


class Judge:
    """store: the folder of `make attribute-measures`. checkpoint: whose autoencoder made the pictures."""

    def __init__(self, store: Path, checkpoint: Path) -> None:
        self.segmenter, self.towers = Segmenter.load(store / SEGMENTER), LatentTowers.load(store / TOWERS)
        self.autoencoder = PortraitAutoencoder.load(checkpoint)
        self.embedder, self.text = FaceEmbedder(), TextMeasure.load(WEIGHTS)

    @torch.no_grad()
    def __call__(
        self, picture: torch.Tensor, original: torch.Tensor, words: Mapping[str, str], target: str
    ) -> dict[str, float | None]:
        """Numbers of one picture [3, H, W] in 0..1. words: of the base text. The attribute's region is left out of
        `outside` and `segments`; id is None where a face is missing in either."""
        both = torch.stack([picture, original])
        labels = self.segmenter.labels(both)
        kept = elsewhere(labels[:1])
        vectors = self.towers.image(self.autoencoder.encode(both * 2 - 1))
        found = [find_landmarks(each) for each in both]
        faces = None
        if all(each is not None for each in found):
            faces = self.embedder.embed(both, torch.stack(found))
        share = float(worn_share(labels)[0])
        right = self.text.agreement(picture[None], [words], found[:1])
        one, other = picture[None], original[None]
        return {
            "area": share,
            "shown": float(share > SHOWN),
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
