"""What one guided call has made, and what of it serves the next."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from ..backbone.memory import upload
from .gradient import RowsGradient
from .rows import Rows


@dataclass(frozen=True, eq=False)
class Made:
    """What the private pass gave for one call: the gradient [B, C, H, W] before gain and cap, and what the trace tells.

    mask, found: boolean [B, 1, H, W], CPU, where it guides, and where a face was found. inside: float, on the device,
    the face, also where all the picture is guided. finite: boolean [B]. similarities, reasons: as in RowsGradient; a
    reason without a picture's number is every picture's. present: which of the people's conditionings applied.
    """

    gradient: torch.Tensor
    mask: torch.Tensor
    found: torch.Tensor
    inside: torch.Tensor | None = None
    finite: torch.Tensor | None = None
    similarities: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    reasons: list[tuple[int | None, str]] = field(default_factory=list)
    present: list[bool] = field(default_factory=list)

    @classmethod
    def nothing(cls, x: torch.Tensor) -> Made:
        """For a latent [B, C, H, W], before anybody's rows are added. Masks live on the CPU, like the parts' labels."""
        mask = torch.zeros(x[:, :1].shape, dtype=torch.bool)
        return cls(torch.zeros_like(x), mask, mask.clone())

    @property
    def guided(self) -> set[int]:
        """Pictures in which somebody was guided."""
        return {number for number, _ in self.similarities}

    def add(self, rows: Rows, own: RowsGradient, share: torch.Tensor) -> None:
        """One conditioning's part, weighted as ComfyUI weights its rows' prediction; share: [B, C, H, W], of all."""
        rows.paste(own.gradient * rows.window(share), self.gradient)
        rows.window(self.mask).logical_or_(own.mask)
        rows.window(self.found).logical_or_(own.found)
        self.similarities.extend(own.similarities)
        self.reasons.extend(own.reasons)

    def finished(self) -> Made:
        """The same without NaN: zeros for pictures whose gradient is not finite."""
        gradient, finite = finite_pictures(self.gradient)
        inside = upload((self.mask & self.found).float(), gradient.device)
        return replace(self, gradient=gradient, finite=finite, inside=inside)

    def keeping(self, held: Made) -> Made:
        """The same, but for the pictures that `held` guides: those keep it, so that no picture of a batch depends on
        whether the others' faces were found."""
        old = held.guided
        kept = torch.tensor([number in old for number in range(len(self.mask))]).view(-1, 1, 1, 1)
        on_device = upload(kept, self.gradient.device)
        return replace(
            self,
            gradient=torch.where(on_device, held.gradient, self.gradient),
            inside=torch.where(on_device, held.inside, self.inside),
            finite=torch.where(on_device.flatten(), held.finite, self.finite),
            mask=torch.where(kept, held.mask, self.mask),
            found=torch.where(kept, held.found, self.found),
            similarities=_of(held.similarities, old) + _of(self.similarities, set(range(len(kept))) - old),
            reasons=_of(held.reasons, old) + _of(self.reasons, {None, *range(len(kept))} - old),
        )


def _of(numbered: list[tuple], numbers: set) -> list[tuple]:
    return [each for each in numbered if each[0] in numbers]


def finite_pictures(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, C, H, W] with zeros for each picture that is not finite everywhere, and [B] which are."""
    finite = values.isfinite().flatten(1).all(dim=1)
    return torch.where(finite.view(-1, 1, 1, 1), values, 0.0), finite
