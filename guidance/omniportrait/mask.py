"""Where the face is: the map of a word, its threshold M_gen, and the split between several people.

Maps are [B, h, w]. Self-attention comes in as a function `smooth(map) -> map` that multiplies by the row-stochastic
A_s, so that nobody has to hold its [hw, hw] matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from .settings import Refinement

Smooth = Callable[[torch.Tensor], torch.Tensor]

TINY = 1e-12
STANDS_OUT = 1.5
"""Times the mean. The embedded model's words with a pivot have 1.7 and more, those of random weights 1.1."""


def min_max(maps: torch.Tensor) -> torch.Tensor:
    """norm: each map to [0, 1]. A constant map becomes zeros: it says nothing about where the face is."""
    low = maps.amin(dim=(-2, -1), keepdim=True)
    span = maps.amax(dim=(-2, -1), keepdim=True) - low
    return torch.where(span > TINY, (maps - low) / span.clamp_min(TINY), torch.zeros_like(maps))


def nested_norm(maps: torch.Tensor, alpha: float, gamma: int) -> torch.Tensor:
    """x <- norm(x)^alpha, gamma times. Equal to norm(x)^(alpha^gamma), for powers keep [0, 1]."""
    for _ in range(gamma):
        maps = min_max(maps) ** alpha
    return maps


def refine(maps: torch.Tensor, smooth: Smooth, alpha: float, gamma: int, form: Refinement = "outer") -> torch.Tensor:
    """Eq. 6: A_s . norm(..norm(A_c)^alpha..)^alpha, and a last min-max so that the threshold beta has a meaning.

    outer: as printed. inner: x <- norm(A_s x)^alpha, gamma times: the self-attention acts inside the loop, which makes
    the loop do something.
    """
    if form == "outer":
        return min_max(smooth(nested_norm(maps, alpha, gamma)))
    if form == "inner":
        for _ in range(gamma):
            maps = min_max(smooth(maps)) ** alpha
        return min_max(maps)
    raise ValueError(f"The mask has the refinements 'outer' and 'inner', not {form!r}.")


def largest_component(mask: torch.Tensor) -> torch.Tensor:
    """Keep the largest 4-connected part of each boolean [B, h, w] mask; labelled on the CPU by SciPy, which ComfyUI
    brings."""
    kept = [_largest_component(each) for each in mask.cpu().numpy()]
    return torch.from_numpy(np.stack(kept)).to(mask.device)


def _largest_component(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def threshold(refined: torch.Tensor, beta: float) -> torch.Tensor:
    """M_gen: the largest connected part above beta, boolean [B, h, w]."""
    return largest_component(refined >= beta)


def prominence(maps: torch.Tensor) -> torch.Tensor:
    """[B] how much A_s . A_c [B, h, w] says that somebody is in the picture: its height, times the square of how far
    that stands above the picture's mean. Eq. 6 cannot tell: it normalises, and finds a face on a bare wall. Ours."""
    height = maps.amax(dim=(-2, -1))
    return height * (height / maps.mean(dim=(-2, -1)).clamp_min(TINY)) ** 2


def known_height(maps: torch.Tensor) -> torch.Tensor:
    """[B] the height on a person's own photograph, against which the prominence in a picture is held; 0 where the word
    does not stand out even there, so that the model does not read it and nobody can be missed by it."""
    height = maps.amax(dim=(-2, -1))
    return torch.where(height >= STANDS_OUT * maps.mean(dim=(-2, -1)), height, 0.0)


def disjoint(refined: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """M_k = M_k and argmax_j A_j = k, so that no point is pulled towards two people. Both are [K, B, h, w]."""
    if len(refined) == 1:
        return masks
    people = torch.arange(len(refined), device=refined.device).view(-1, 1, 1, 1)
    return masks & (refined.argmax(dim=0, keepdim=True) == people)


def resize_mask(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Nearest resize of a [B, h, w] mask to (h, w); boolean in, boolean out.

    A mask that falls between the points of a coarser grid keeps the cells it touches, so that no small face is lost.
    """
    if mask.shape[-2:] == size:
        return mask
    values = mask[:, None].float()
    nearest = F.interpolate(values, size=size, mode="nearest-exact")
    lost = nearest.amax(dim=(1, 2, 3), keepdim=True) == 0
    if lost.any():
        touched = F.adaptive_max_pool2d(values.cpu(), size).to(values.device)  # Metal pools divisible sizes only
        nearest = torch.where(lost, touched, nearest)
    return nearest[:, 0].to(mask.dtype)


def resize_map(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear resize of [B, h, w] maps to (h, w)."""
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def cover(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Soft [B, H, W] mask in 0..1 to boolean (h, w): a cell counts when at least half of it is covered."""
    return shrink(mask, size) >= 0.5


def shrink(mask: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Mean of a soft [B, H, W] mask over each cell of (h, w). On the CPU, for Metal pools divisible sizes only."""
    return F.adaptive_avg_pool2d(mask[:, None].float().cpu(), size)[:, 0].to(mask.device)
