"""Face Detail: a face of an existing picture, sampled anew on its crop at full resolution and put back.

It knows nothing of guidance: whatever the MODEL and the conditioning carry acts on the crop as on any picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..models.faces.build import FaceOptions, NoFaceError, make_reference
from ..models.faces.detail import Cut, cut_out, put_back
from .trace import log

LEAVE = "leave the picture"
NO_FACE = ("stop", LEAVE)
TOUCHED = 0.01
"""Of the soft mask: below it a pixel's latent is not sampled."""


@dataclass(frozen=True)
class Detail:
    """How a face is found and painted. side: of the crop while it is sampled, in pixels; crop_factor, grow, feather: as
    cut_out has them. The rest is as in Face Reference and KSampler."""

    side: int
    order: str
    index: int
    crop_factor: float
    grow: float
    feather: float
    no_face: str
    detector: str
    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    denoise: float

    def __post_init__(self) -> None:
        """Raises: ValueError for a choice that is not offered."""
        if self.no_face not in NO_FACE:
            raise ValueError(f"Face Detail has no no_face {self.no_face!r}; choose {' or '.join(NO_FACE)}.")


@dataclass(frozen=True)
class Detailed:
    """image: IMAGE [B, H, W, 3]. before, after: [B, S, S, 3], the crops; black where a picture was left as it was.
    mask: [B, H, W], what was painted. latent: ComfyUI's LATENT of the crops."""

    image: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    mask: torch.Tensor
    latent: dict


def detail(
    model: object,
    vae: object,
    positive: list,
    negative: list,
    image: torch.Tensor,
    how: Detail,
    facexlib_folders: Sequence[Path] = (),
) -> Detailed:
    """Paint the face of each picture of IMAGE [B, H, W, C] anew. Raises: ValueError, one sentence, for a picture
    without a face where `how` says so."""
    parts = [_one(model, vae, positive, negative, each[None, ..., :3], how, facexlib_folders) for each in image]
    whole, before, after, mask, samples = (torch.cat(each) for each in zip(*parts, strict=True))
    return Detailed(whole, before, after, mask, {"samples": samples})


def _one(model, vae, positive, negative, picture, how: Detail, folders) -> tuple[torch.Tensor, ...]:
    cut = _cut(picture, how, folders)
    if cut is None:
        black = torch.zeros(1, how.side, how.side, 3)
        return picture, black, black, torch.zeros(picture.shape[:3]), torch.zeros_like(vae.encode(black))
    import nodes  # ComfyUI's own

    latent = {"samples": vae.encode(cut.crop), "noise_mask": (cut.mask > TOUCHED).float()[None]}
    (latent,) = nodes.common_ksampler(
        model, how.seed, how.steps, how.cfg, how.sampler_name, how.scheduler, positive, negative, latent, how.denoise
    )
    (painted,) = nodes.VAEDecode().decode(vae, latent)
    return (*_together(picture, painted, cut), latent["samples"])


def _together(picture: torch.Tensor, painted: torch.Tensor, cut: Cut) -> tuple[torch.Tensor, ...]:
    whole, mask = put_back(picture, painted, cut)
    return whole, cut.crop, painted.cpu(), mask


def _cut(picture: torch.Tensor, how: Detail, folders: Sequence[Path]) -> Cut | None:
    """None where there is no face and the picture is to be left."""
    options = FaceOptions(order=how.order, index=how.index, detector=how.detector)
    try:
        face = make_reference(picture, None, options, folders)
    except NoFaceError as error:
        if how.no_face != LEAVE:
            raise
        log.warning("Face Detail leaves a picture as it was. %s", error)
        return None
    return cut_out(picture, face, how.side, how.crop_factor, how.grow, how.feather)
