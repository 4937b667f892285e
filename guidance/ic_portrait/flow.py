"""Eq. 4 to 6: where each place of the lit picture lies in the profile.

A flow is [B, h, w, 2]: for each cell of the lit picture a place (x, y) in the profile, in shares of its width and
height. Eq. 6 prints the other direction; to warp the profile into the lit picture this one is needed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

TEMPERATURE = 0.05
"""Of the softmax over cosines."""
WINDOW = 2.5
"""Cells around the best match over which a soft match is averaged."""
CYCLE_SHARE = 0.4
"""DreamMatcher's: how far, in sides of the face, a match may lead away on its way back."""


def own_places(height: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """[h, w, 2] the cells' own centres: the flow of a picture onto itself."""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def cost_volume(profile: torch.Tensor, lit: torch.Tensor) -> torch.Tensor:
    """C of Eq. 5: cosines [B, N, M] of each of the lit picture's N cells with each of the profile's M, float32.

    profile, lit: descriptors [B, C, h, w].
    """
    source, target = (F.normalize(each.float().flatten(2), dim=1) for each in (profile, lit))
    return target.transpose(1, 2) @ source


def match(cost: torch.Tensor, size: tuple[int, int], near: torch.Tensor | None = None) -> torch.Tensor:
    """Eq. 6, softly: for each lit cell the mean place, by the softmax of the cosines, within a window around the best.

    cost: [B, N, M] of two pictures of `size` cells. near: a flow [B, h, w, 2] around which to look instead, the prior
    term of Eq. 4. Returns a flow.
    """
    height, width = size
    places = own_places(height, width, cost.device).flatten(0, 1)
    around = places[cost.argmax(-1)] if near is None else near.flatten(1, 2)
    away = (places[None, None] - around[:, :, None]).abs() * places.new_tensor([width, height])
    shares = (cost / TEMPERATURE).masked_fill((away > WINDOW).any(-1), -torch.inf).softmax(-1)
    return (shares.nan_to_num() @ places).unflatten(1, size)  # no cell in the window: the flow is 0, and never trusted


def trusted(cost: torch.Tensor, size: tuple[int, int], face_share: float) -> torch.Tensor:
    """Boolean [B, h, w]: whether the lit cell's match leads back to where it came from (DreamMatcher's rule).

    face_share: side of the face in sides of the picture.
    """
    places = own_places(*size, cost.device).flatten(0, 1)
    back = cost.argmax(1).gather(1, cost.argmax(-1))
    return ((places[back] - places).norm(dim=-1) < CYCLE_SHARE * face_share).unflatten(1, size)


def affine(transform: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The flow of a transform [B, 2, 3] from the lit picture's shares to the profile's: the prior of five landmarks."""
    places = own_places(*size, transform.device).flatten(0, 1).to(transform)
    return (places @ transform[:, :, :2].transpose(1, 2) + transform[:, None, :, 2]).unflatten(1, size)


def by_places(lit: torch.Tensor, profile: torch.Tensor, reach: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The flow [B, h, w, 2] between pictures that tell which point of a common surface each cell shows, and boolean
    [B, h, w] where it is known: each lit cell goes to the cell of the profile whose point is nearest.

    lit, profile: points [B, h, w, 3], NaN where there are none. reach: how far apart the same point may be.
    """
    own = own_places(*profile.shape[1:3]).flatten(0, 1).to(profile)
    known = [each.isfinite().all(-1).flatten(1) for each in (lit, profile)]
    away = torch.cdist(lit.nan_to_num().flatten(1, 2), profile.nan_to_num().flatten(1, 2))
    away = away.masked_fill(~known[1][:, None], torch.inf)
    nearest, which = away.min(-1)
    size = lit.shape[1:3]
    return own[which].unflatten(1, size), (known[0] & (nearest < reach)).unflatten(1, size)


def resized(flow: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A flow for another number of cells: how far each is moved is what is interpolated."""
    if tuple(flow.shape[1:3]) == tuple(size):
        return flow
    moved = (flow - own_places(*flow.shape[1:3], flow.device)).movedim(-1, 1)
    moved = F.interpolate(moved, size, mode="bilinear", align_corners=False).movedim(1, -1)
    return moved + own_places(*size, flow.device)


def warp(features: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """The profile's features [B, C, h, w] where the lit picture's cells see them; the border repeats itself outside."""
    grid = resized(flow, tuple(features.shape[-2:])).float() * 2 - 1
    return F.grid_sample(features.float(), grid, mode="bilinear", padding_mode="border", align_corners=False).to(
        features
    )
