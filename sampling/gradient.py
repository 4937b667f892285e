"""The gradient of one conditioning's rows: Eq. 7 to 10 for each of its people, kept inside their own mask (Eq. 9)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..backbone.memory import upload
from ..guidance.omniportrait import mask as region
from ..guidance.omniportrait.guide import feature_energy
from ..guidance.omniportrait.settings import Settings
from .people import Person
from .rows import Rows, face_maps, failed

NO_LATENT = "the VAE makes NaN of the reference face (start ComfyUI with --fp32-vae)"


@dataclass(frozen=True, eq=False)
class RowsGradient:
    """gradient: dE/dz_t, the sum over the people, float32 [B, C, h, w] of the rows' area. mask: boolean [B, 1, h, w],
    CPU, the union of the M_gen that were used. found: of all that were found. similarities: a picture's
    number and its mean S of Eq. 8, for each person guided there. reasons: a picture's number, and why it was left
    unguided for a person."""

    gradient: torch.Tensor
    mask: torch.Tensor
    found: torch.Tensor
    similarities: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    reasons: list[tuple[int, str]] = field(default_factory=list)


def people_gradient(
    rows: Rows,
    people: tuple[Person, ...],
    references: list[torch.Tensor | None],
    c_in: torch.Tensor,
    settings: Settings,
) -> RowsGradient:
    """Sum over people of gradient_k inside M_k (Eq. 9: the background's gradient is filtered out).

    references: [N, C] features of each person's face, or None where there are none. c_in: [B, 1, 1, 1], what ComfyUI
    multiplies x by before the UNet, so that the gradient is that of z_t.
    """
    _, masks = face_maps(rows, people, settings)
    latent_size, feature_size = tuple(rows.x.shape[-2:]), tuple(rows.features.shape[-2:])
    everywhere = not settings.background_masking
    nowhere = torch.zeros(rows.x[:, :1].shape, dtype=torch.bool)
    found = region.resize_mask(masks.any(dim=0), latent_size)[:, None]
    total = RowsGradient(torch.zeros_like(rows.x), nowhere, found)
    for k, person in enumerate(people):
        if references[k] is None:
            total.reasons.extend((b, NO_LATENT) for b in range(len(rows.x)))
            continue
        reasons = {b: reason for b, mask in enumerate(masks[k]) if (reason := failed(mask, person, rows))}
        total.reasons.extend(reasons.items())
        usable = [b for b in range(len(rows.x)) if b not in reasons]
        if not usable:
            continue
        at_features = region.resize_mask(masks[k], feature_size) | everywhere
        at_latent = (region.resize_mask(masks[k], latent_size) | everywhere)[:, None].clone()
        at_latent[list(reasons)] = False
        inside = upload(at_latent, rows.x.device)
        at_h, similarities = _at_features(rows.features, references[k], at_features, usable, settings)
        own = _at_input(rows, at_h, keep_graph=k + 1 < len(people)) / c_in
        # A product alone would let NaN out of pictures that are not guided.
        total.gradient.add_(torch.where(inside, own, 0.0))
        total.mask.logical_or_(at_latent)
        total.similarities.extend(zip(usable, similarities, strict=True))
    return total


def _at_features(
    features: torch.Tensor, reference: torch.Tensor, masks: torch.Tensor, usable: list[int], settings: Settings
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """dE/dh of one person, float32 [B, C, h, w] on the detached features, and S of each usable picture."""
    leaf = features.detach().float().requires_grad_(True)
    pairs = [feature_energy(reference, leaf[b], masks[b], settings.p, settings.reduction) for b in usable]
    energies, similarities = zip(*pairs, strict=True)
    at_h = torch.autograd.grad(torch.stack(energies).sum(), leaf)[0]
    return at_h, [each.detach() for each in similarities]


def _at_input(rows: Rows, at_h: torch.Tensor, keep_graph: bool) -> torch.Tensor:
    """dE/dx of the rows' input, float32 [B, C, h, w], by the UNet's way back.

    dE/dh goes in scaled to 1, because half precision would flush it to zero (cosine 0.69 to the true gradient instead
    of 0.999996).
    """
    scale = at_h.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-30)
    with rows.guard():
        scaled = (at_h / scale).to(rows.features.dtype)
        at_x = torch.autograd.grad(rows.features, rows.x, scaled, retain_graph=keep_graph)[0]
    return at_x.float() * scale
