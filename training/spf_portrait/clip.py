"""The CLIP of Eq. 10 and 11: an image tower that sees latents, and a text tower.

For real checkpoints an open_clip model of the user's own file, behind a decoder; for the portrait world small towers
that read latents as they are (latent_towers.py).
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ..base import Base
from .config import Config
from .dual_path import Clip
from .latent_towers import LatentTowers, are_latent_towers


class OpenClip:
    """open_clip's towers in float32. model: its name. decode: "vae" or "preview"."""

    def __init__(self, base: Base, file: Path, model: str, decode: str) -> None:
        import open_clip

        try:
            self.model = open_clip.create_model(model, pretrained=str(file), precision="fp32", device=base.device)
            self.tokenizer = open_clip.get_tokenizer(model)
        except Exception as error:  # of another shape, no checkpoint, no such model
            raise ValueError(
                f"{file} cannot be read as open_clip's {model} ({type(error).__name__}): give the file that belongs to "
                "enhance.model."
            ) from error
        self.model.requires_grad_(False).eval()
        self.base, self.decode = base, decode
        visual = self.model.visual
        side = visual.image_size
        self.side = side[0] if isinstance(side, tuple) else side
        cfg = visual.preprocess_cfg
        self.mean, self.std = (torch.tensor(cfg[name], device=base.device).view(1, 3, 1, 1) for name in ("mean", "std"))
        self.text = lru_cache(self._text)

    def image(self, latents: torch.Tensor) -> torch.Tensor:
        pictures = torch.cat([self._decoded(latent[None]) for latent in latents])  # one at a time, for the memory
        pictures = F.interpolate(pictures, (self.side, self.side), mode="bicubic", antialias=True)
        return self.model.encode_image((pictures.clamp(0, 1) - self.mean) / self.std)

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures [B, 3, H, W] about 0..1 of latents in the UNet's scale."""
        form = self.base.net.latent_format
        if self.decode == "preview":
            factors = torch.tensor(form.latent_rgb_factors, device=latents.device)
            return (torch.einsum("bchw,cd->bdhw", latents.float(), factors) + 1) / 2
        vae = self.base.vae.first_stage_model
        plain = self.base.net.process_latent_out(latents).to(next(vae.parameters()).dtype)
        decoded = checkpoint(vae.decode, plain, use_reentrant=False) if latents.requires_grad else vae.decode(plain)
        return (decoded.float() + 1) / 2

    @torch.no_grad()
    def _text(self, phrase: str) -> torch.Tensor:
        return self.model.encode_text(self.tokenizer([phrase]).to(self.base.device))[0]


def load_clip(config: Config, base: Base) -> Clip | None:
    """What `enhance` asks for. ValueError for a file that is none."""
    if config.enhance.kind == "none":
        return None
    file = Path(config.enhance.clip).expanduser()
    if not file.is_file():
        raise ValueError(f"There is no file {file}: enhance.clip must be an open_clip checkpoint with both towers.")
    if are_latent_towers(file):
        return LatentTowers.load(file).to(base.device)
    return OpenClip(base, file, config.enhance.model, config.enhance.decode)
