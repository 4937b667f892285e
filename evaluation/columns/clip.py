"""CLIP-T, CLIP-I, IQA and the text half of BLIP, by open_clip from a file that is named as its model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from ..cells import Cell
from ..portrait import Album, Portrait
from .column import NoFile, Shown, only_file

ENDINGS = (".safetensors", ".pt", ".pth", ".bin")
GOOD_AND_BAD = ("Good photo.", "Bad photo.")
"""CLIP-IQA's pair of prompts (Wang, Chan, Loy: Exploring CLIP for assessing the look and feel of images, 2023)."""


class Clip:
    """An open_clip model in a file whose name says which, as `ViT-L-14-quickgelu.safetensors`."""

    def __init__(self, weights: Path, folder: str, what: str) -> None:
        import open_clip

        self.file = only_file(weights, folder, ENDINGS, what)
        self.name = self.file.stem
        if self.name not in open_clip.list_models():
            near = ", ".join(name for name in open_clip.list_models() if name[:6] == self.name[:6])
            raise NoFile(f"{self.file} is not named as a model of open_clip; there are {near or 'others'}.")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.random.fork_rng(devices=[]):
            self.model, _, self.prepared = open_clip.create_model_and_transforms(
                self.name, pretrained=str(self.file), device=self.device
            )
        self.model.eval().requires_grad_(False)
        self.tokens = open_clip.get_tokenizer(self.name)

    @torch.no_grad()
    def picture(self, image: Image.Image) -> torch.Tensor:
        """[D], of length 1."""
        return F.normalize(self.model.encode_image(self.prepared(image)[None].to(self.device)).float(), dim=-1)[0].cpu()

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """[N, D], of length 1."""
        return F.normalize(self.model.encode_text(self.tokens(list(texts)).to(self.device)).float(), dim=-1).cpu()

    @property
    def scale(self) -> float:
        """What the model multiplies cosines with."""
        return float(self.model.logit_scale.exp())


class ClipColumns:
    """CLIP-T: cosine of portrait and prompt. CLIP-I: cosine of the face crops of photograph and portrait."""

    def __init__(self, weights: Path) -> None:
        what = "OpenAI's CLIP ViT-L/14 (MIT) as ViT-L-14-quickgelu.safetensors or .pt, or another model of open_clip,"
        self.clip = Clip(weights, "clip", what)
        self.key = f"clip-1-{self.clip.name}-{self.clip.file.stat().st_size}"
        self.shown = (Shown("clip_t", "CLIP-T", 1, 100, 2), Shown("clip_i", "CLIP-I", 1, 100, 2, of_face=True))
        self._photo = lru_cache(maxsize=1024)(self._face_of)

    def _face_of(self, file: Path, album: Album) -> torch.Tensor | None:
        crop = album.photo(file).crop
        return None if crop is None else self.clip.picture(crop)

    def __call__(self, cell: Cell, portrait: Portrait, album: Album) -> dict[str, float | None]:
        row = {"clip_t": float(self.clip.picture(portrait.image) @ self.clip.texts([cell.text])[0]), "clip_i": None}
        own = self._photo(cell.person.photo, album)
        if own is not None and portrait.crop is not None:
            row["clip_i"] = float(self.clip.picture(portrait.crop) @ own)
        return row


class Iqa:
    """CLIP-IQA: the probability of "Good photo." against "Bad photo.". The picture is prepared as for any other use of
    that model; the original skips its position embedding to keep the resolution."""

    def __init__(self, weights: Path) -> None:
        what = "OpenAI's CLIP RN50 (MIT) as RN50-quickgelu.safetensors or .pt, or another model of open_clip,"
        self.clip = Clip(weights, "iqa", what)
        self.key = f"iqa-1-{self.clip.name}-{self.clip.file.stat().st_size}"
        self.shown = (Shown("iqa", "IQA", 1, 100, 2),)
        self.pair = self.clip.texts(GOOD_AND_BAD)

    def __call__(self, cell: Cell, portrait: Portrait, album: Album) -> dict[str, float | None]:
        logits = self.clip.scale * (self.pair @ self.clip.picture(portrait.image))
        return {"iqa": float(logits.softmax(0)[0])}
