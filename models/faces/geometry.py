"""The least-squares transform between two faces' landmarks."""

from __future__ import annotations

import torch


def similarity(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Rotation, scale and shift [B, 2, 3] that bring `source` [B, N, 2] nearest to `target` [B, N, 2].

    In complex numbers z' = a z + b, where a is a plain regression; a mirror image is never among the answers.
    """
    z, w = (torch.view_as_complex(points.contiguous()) for points in (source, target))
    centre_z, centre_w = z.mean(1, keepdim=True), w.mean(1, keepdim=True)
    spread = (z - centre_z).abs().square().sum(1, keepdim=True).clamp(min=1e-12)
    a = ((z - centre_z).conj() * (w - centre_w)).sum(1, keepdim=True) / spread
    b = centre_w - a * centre_z
    rows = torch.stack([a.real, -a.imag, b.real, a.imag, a.real, b.imag], -1)
    return rows.reshape(-1, 2, 3)


def moved(points: torch.Tensor, transform: torch.Tensor) -> torch.Tensor:
    """Points [B, N, 2] after a transform [B, 2, 3]."""
    return points @ transform[..., :2].transpose(-1, -2) + transform[..., 2].unsqueeze(-2)
