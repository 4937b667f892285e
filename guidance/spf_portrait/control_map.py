"""Eq. 7 to 9: the Semantic-Aware Fine Control Map (SFCM), where the target's words change the picture.

Both paths see one noisy latent: the reference path is the original model on the base text, the response path the tuned
model on the complete text. The figure draws the difference of their noise predictions, from which each phrase of the
base text is subtracted in turn: its attention map times its distance from the target.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .settings import ControlMap

TINY = 1e-8
Span = tuple[int, int]
"""Columns of a phrase in the text's states: first, and one past the last."""


def difference(response: torch.Tensor, reference: torch.Tensor, blur: int = 3, floor: float = 0.0) -> torch.Tensor:
    """Eq. 7: N = n01(blur(mean over channels of |eps_res - eps_ref|)), [B, h, w] in 0..1, without a gradient.

    response, reference: noise predictions [B, C, h, w]. blur: side of the mean filter. floor: see `ControlMap`.
    """
    apart = (response.detach() - reference.detach()).float().abs().mean(1, keepdim=True)
    apart = F.avg_pool2d(apart, blur, 1, blur // 2, count_include_pad=False)[:, 0]
    share = torch.ones_like(apart[:, 0, 0])
    if floor:
        size = reference.detach().float().square().mean((1, 2, 3)).sqrt()
        share = (apart.amax((1, 2)) / (floor * size + TINY)).clamp(max=1)
    return stretched(apart) * share[:, None, None]


def stretched(maps: torch.Tensor) -> torch.Tensor:
    """n01: [..., h, w] from its least to its largest value, 0 where all are equal."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp_min(TINY)


def phrase_map(attention: torch.Tensor, span: Span) -> torch.Tensor:
    """Eq. 8, M_p: the share of each place's attention that goes to a phrase's tokens, [..., h, w].

    attention: [..., h, w, columns], softmax over the columns.
    """
    return attention[..., span[0] : span[1]].sum(-1)


def distance(states: torch.Tensor, phrase: Span, target: Span) -> torch.Tensor:
    """Eq. 8, D_p = 1 - cos between a phrase and the target [], each the mean of its columns of the text encoder's
    states [columns, D] of the complete text."""
    one, other = (states[first:last].float().mean(0) for first, last in (phrase, target))
    return 1 - F.cosine_similarity(one, other, dim=0)


def control_map(noise: torch.Tensor, maps: torch.Tensor, distances: torch.Tensor, gain: float) -> torch.Tensor:
    """Eq. 9: S = clamp(gain (N - sum_p D_p M_p), 0, 1), [h, w].

    noise: N, [h, w]. maps: M_p, [P, h, w]. distances: D_p, [P].
    """
    return (gain * (noise - (distances[:, None, None] * maps).sum(0))).clamp(0, 1)


def fine_control(
    noise: torch.Tensor,
    reference: torch.Tensor,
    response: torch.Tensor,
    states: torch.Tensor,
    phrases: Sequence[Span],
    target: Span,
    settings: ControlMap,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Eq. 7 to 9 for one picture: S [h, w], M_p [P, h, w], D_p [P]; no gradient.

    noise: N, [h, w]. reference, response: attention of both paths [h', w', columns], mean over heads and layers.
    states: of the complete text [columns, D]. phrases: of the base text, target: in the complete text.
    """
    literal = settings.reading == "literal"
    attention = (response if literal else reference).detach()
    found = [phrase_map(attention, span) for span in phrases]
    maps = torch.stack(found) if found else attention.new_zeros(0, *attention.shape[:2])
    maps = resized(maps, tuple(noise.shape))
    maps = stretched(maps) if literal else maps
    constant = torch.tensor(settings.constant, device=noise.device)
    apart = [distance(states, span, target) if settings.distance == "states" else constant for span in phrases]
    distances = settings.subtract * torch.stack(apart).to(maps) if apart else maps.new_zeros(0)
    if settings.gate == "none":
        return torch.zeros_like(noise), maps, distances
    if settings.gate == "difference":
        return noise, maps, distances
    return control_map(noise, maps, distances, 1.0 if literal else settings.gain), maps, distances


def resized(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Maps [P, h, w] on another grid: means of cells where it is coarser, bilinear where it is finer."""
    if not len(maps) or tuple(maps.shape[-2:]) == size:
        return maps.new_zeros(0, *size) if not len(maps) else maps
    if size[0] <= maps.shape[-2] and size[1] <= maps.shape[-1]:
        return F.interpolate(maps[:, None], size, mode="area")[:, 0]
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
