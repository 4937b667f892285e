"""When a gradient is due, and when the last one serves."""

from __future__ import annotations

import torch

from .gradient import CallGradient

SAME = 1 + 1e-4
"""Sigmas no further apart are one: some samplers compute what they have."""


class HeldGradient:
    """The gradient is made at every so many sigmas inside the window, and held in between.

    Sigmas are counted, not calls, for some samplers ask twice at one; and anew where they go up (restarts, a step of
    dpm_adaptive that is tried again), since what is held comes from a later picture.
    """

    def __init__(self, every: int) -> None:
        self._every = every
        self._last = float("nan")  # sigma of the last call, inside the window or not
        self._counted: list[float] = []  # sigmas inside the window, since any that was higher than its predecessor
        self._gradient: CallGradient | None = None

    def arrive(self, sigma: float, inside: bool) -> None:
        """ComfyUI asks for a prediction at sigma, inside the window or not."""
        if sigma > self._last * SAME:
            self._counted = []
        self._last = sigma
        if inside and (not self._counted or sigma * SAME < self._counted[-1]):
            self._counted.append(sigma)

    def serving(self, shape: torch.Size, present: list[bool]) -> CallGradient | None:
        """The last gradient, where it serves the call at hand: a latent of this shape, and the same people present."""
        gradient = self._gradient
        due = (len(self._counted) - 1) % self._every == 0
        if due or gradient is None or not gradient.guided or gradient.gradient.shape != shape:
            return None
        return gradient if gradient.present == present else None

    def keep(self, gradient: CallGradient | None) -> None:
        """Hold this gradient, or none."""
        self._gradient = gradient
