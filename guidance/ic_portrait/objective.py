"""Eq. 3, the denoising objective, and a second one for pairs whose correspondence is known."""

from __future__ import annotations

import torch

from .flow import TEMPERATURE, own_places
from .masking import halves


def denoising(predicted: torch.Tensor, noise: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Eq. 3 for each sample [B]: the squared error of the noise [B, C, h, w], its mean weighted by place [B, h, w]."""
    error = (predicted.float() - noise.float()).square().mean(1)
    return (error * weights).sum((1, 2)) / weights.sum((1, 2)).clamp_min(1e-6)


def both_halves(
    predicted: torch.Tensor, noise: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The profile's and the lit picture's error [B] apart: the former is given to the nets and tells little.

    predicted, noise: [B, C, h, 2 w]. weights: of the lit picture's places [B, h, w].
    """
    (left, right), (given, wanted) = halves(predicted), halves(noise)
    return denoising(left, given, torch.ones_like(weights)), denoising(right, wanted, weights)


def correspondence(cost: torch.Tensor, flow: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Cross entropy [B] of the true match under the softmax of Eq. 5's cosines; 0 where nothing is known.

    Not the paper's, which trains the matching net by Eq. 3 too. cost: [B, N, M]. flow: [B, h, w, 2] of as many cells.
    known: boolean [B, h, w].
    """
    height, width = flow.shape[1:3]
    cells = (flow * flow.new_tensor([width, height])).floor().long()
    column, row = cells[..., 0].clamp(0, width - 1), cells[..., 1].clamp(0, height - 1)
    wanted = (row * width + column).flatten(1)
    told = -(cost / TEMPERATURE).log_softmax(-1).gather(-1, wanted[..., None])[..., 0]
    inside = known.flatten(1) & ((flow >= 0) & (flow < 1)).all(-1).flatten(1)
    return (told * inside).sum(1) / inside.sum(1).clamp_min(1)


def at_size(flow: torch.Tensor, known: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A known flow at fewer cells: each moves as far as the cell at its middle, whose own place is another."""
    places, finer = own_places(*size, flow.device), own_places(*flow.shape[1:3], flow.device)
    row = (places[..., 1] * flow.shape[1]).long().clamp(max=flow.shape[1] - 1)
    column = (places[..., 0] * flow.shape[2]).long().clamp(max=flow.shape[2] - 1)
    return flow[:, row, column] + (places - finer[row, column]), known[:, row, column]
