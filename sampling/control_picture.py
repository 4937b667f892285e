"""The control map for people's eyes: over a picture, and its parts in a strip with their names."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from ..backbone.family import picture_size
from .dual_look import FineControl
from .heat_map import heat_map

FAINT, STRONG = 0.25, 0.75
"""How much of the heat map covers the picture where S is 0, and where it is 1."""
LABEL = 36
"""Height of the line below each part, pixels."""


def at_picture_size(maps: torch.Tensor) -> torch.Tensor:
    """[B, h, w] on the latent's grid as a MASK [B, H, W]."""
    return F.interpolate(maps[:, None], picture_size(maps), mode="bilinear", align_corners=False)[:, 0]


def overlay(control: torch.Tensor, image: torch.Tensor | None) -> torch.Tensor:
    """S [B, h, w] as a heat map [B, H, W, 3] over an image of any size, brighter where S is high; on black without
    one."""
    mask = at_picture_size(control)
    heat = heat_map(mask)
    if image is None:
        return heat
    shown = F.interpolate(image[..., :3].movedim(-1, 1).float(), tuple(mask.shape[1:]), mode="bilinear", antialias=True)
    shown = shown.movedim(1, -1)[torch.arange(len(mask)) % len(shown)]
    share = (FAINT + (STRONG - FAINT) * mask)[..., None]
    return shown * (1 - share) + heat * share


def parts_strip(found: FineControl) -> torch.Tensor:
    """[B, H + LABEL, W * (P + 2), 3]: N, each phrase's map with its distance, and S. A phrase's share of the attention
    is small, so its map is drawn against its own maximum, which the label names."""
    parts = [("N: noise difference", found.noise)]
    for number, phrase in enumerate(found.phrases):
        own = found.maps[:, number]
        high = own.amax((1, 2), keepdim=True)
        parts.append((f"{phrase}: D {float(found.distances[number]):.2f}, up to {float(high.max()):.2f}",
                      own / high.clamp_min(1e-8)))  # fmt: skip
    parts.append(("S: control map", found.control))
    return torch.cat([_labelled(heat_map(at_picture_size(maps)), name) for name, maps in parts], 2)


def _labelled(pictures: torch.Tensor, name: str) -> torch.Tensor:
    """Pictures [B, H, W, 3] with a line of text below."""
    label = Image.new("RGB", (pictures.shape[2], LABEL), (24, 24, 24))
    size = 14
    while size > 7 and ImageFont.load_default(size=size).getlength(name) > pictures.shape[2] - 8:
        size -= 1
    ImageDraw.Draw(label).text((4, 8), name, fill=(230, 230, 230), font=ImageFont.load_default(size=size))
    strip = torch.from_numpy(np.array(label)).float() / 255
    return torch.cat([pictures, strip.expand(len(pictures), -1, -1, -1)], 1)
