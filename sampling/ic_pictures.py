"""Pictures of what IC-Portrait matches, and the painted crop back in its photograph."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..guidance.ic_portrait.flow import own_places, resized, warp
from ..models.faces import FaceReference
from ..models.faces.crop import paste


def flow_colours(flow: torch.Tensor) -> torch.Tensor:
    """[1, 3, h, w] in 0..1 of a flow [1, h, w, 2]: the colour is the direction in which the profile's place lies from
    the cell's own, and its depth how far."""
    away = flow - own_places(*flow.shape[1:3], flow.device)
    turn = torch.atan2(away[..., 1], away[..., 0])
    far = (away.norm(dim=-1) * 4).clamp(max=1)
    tones = torch.stack([0.5 + 0.5 * torch.cos(turn + shift * 2 * math.pi / 3) for shift in range(3)], 1)
    return 1 - far[:, None] * (1 - tones)


def overview(profile: torch.Tensor, style: torch.Tensor, flow: torch.Tensor | None, trusted: torch.Tensor | None):
    """[1, S, n S, 3] for people: profile, style, the profile warped, the flow as colours, where it was found.

    profile, style: [1, 3, S, S] in 0..1. flow: [1, h, w, 2]. trusted: boolean [1, h, w].
    """
    size = tuple(style.shape[-2:])
    tiles = [profile, style]
    if flow is not None:
        flow = flow.cpu()
        tiles += [warp(profile, flow), flow_colours(resized(flow, size))]
    if trusted is not None:
        found = F.interpolate(trusted[:, None].float().cpu(), size, mode="nearest")
        tiles.append(style * (0.3 + 0.7 * found))
    return torch.cat(tiles, -1).movedim(1, -1).clamp(0, 1)


def feathered(side: int, feather: float) -> torch.Tensor:
    """[side, side] in 0..1: 1 inside, falling smoothly to 0 over a border of `feather` sides."""
    edge = torch.linspace(0.5 / side, 1 - 0.5 / side, side)
    ramp = (torch.minimum(edge, 1 - edge) / max(feather, 1e-6)).clamp(max=1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    return ramp[:, None] * ramp


def pasted(
    photo: torch.Tensor, face: torch.Tensor, style: FaceReference, feather: float, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The photograph with a new crop where the style's was, and how much of it is new, [1, H, W].

    photo: [1, H, W, 3] in 0..1, as Face Reference had it. face: [1, S, S, 3]. mask: [1, h, w] in 0..1 of the crop, what
    of it is taken.
    """
    photo = torch.rot90(photo, style.turns, (1, 2))
    height, width = photo.shape[1:3]
    box = tuple(round(value) for value in style.box)
    share = feathered(face.shape[1], feather)
    if mask is not None:
        first = mask.reshape(-1, *mask.shape[-2:])[:1]
        share = share * F.interpolate(first[None].float(), tuple(share.shape), mode="bilinear")[0, 0]
    alpha = paste(share, box, height, width)
    colours = torch.stack([paste(face[0, ..., channel], box, height, width) for channel in range(3)], -1)
    made = (photo + alpha[None, ..., None] * (colours - photo)).clamp(0, 1)
    return torch.rot90(made, -style.turns, (1, 2)), torch.rot90(alpha[None], -style.turns, (1, 2))
