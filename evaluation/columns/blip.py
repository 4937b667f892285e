"""BLIP: how near a caption of the portrait is to the prompt, as Attend-and-Excite measures it (Chefer et al., 2023)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from ..cells import Cell
from ..portrait import Album, Portrait
from .clip import Clip
from .column import NoFile, Shown


class Blip:
    """Cosine in CLIP's text space of BLIP's caption and the prompt, which is averaged over ImageNet's 80 templates."""

    def __init__(self, weights: Path) -> None:
        import transformers

        folder = weights / "blip"
        if not (folder / "config.json").is_file():
            raise NoFile(f"nothing in {folder}: put the files of Salesforce/blip-image-captioning-base (BSD-3) there.")
        what = "OpenAI's CLIP ViT-B/16 (MIT) as ViT-B-16-quickgelu.safetensors or .pt"
        self.clip = Clip(weights, "blip_text", what)
        local = {"local_files_only": True}
        self.processor = transformers.BlipProcessor.from_pretrained(folder, **local)
        self.captioner = transformers.BlipForConditionalGeneration.from_pretrained(folder, **local)
        self.captioner.eval().requires_grad_(False).to(self.clip.device)
        size = sum(file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file())
        self.key = f"blip-1-{size}-{self.clip.name}-{self.clip.file.stat().st_size}"
        self.shown = (Shown("blip", "BLIP", 1, 100, 2),)

    @torch.no_grad()
    def caption(self, portrait: Portrait) -> str:
        given = self.processor(images=portrait.image, return_tensors="pt").to(self.clip.device)
        tokens = self.captioner.generate(**given, num_beams=3, max_length=30, min_length=10)
        return self.processor.decode(tokens[0], skip_special_tokens=True).strip()

    def prompt(self, text: str) -> torch.Tensor:
        """[D], of length 1: the mean over the templates, without their doubled articles."""
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        written = [
            template(text).replace("a a ", "a ").replace("the a ", "a ") for template in OPENAI_IMAGENET_TEMPLATES
        ]
        return F.normalize(self.clip.texts(written).mean(0), dim=0)

    def __call__(self, cell: Cell, portrait: Portrait, album: Album) -> dict[str, float | None]:
        return {"blip": float(self.clip.texts([self.caption(portrait)])[0] @ self.prompt(cell.text))}
