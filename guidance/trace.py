"""What a guided run did, step by step, and a small plot of it for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch

WIDTH, HEIGHT, THUMBNAIL = 960, 540, 72
INK, GRID, SCORE, SHARE = (35, 35, 40), (225, 225, 230), (31, 119, 180), (214, 100, 30)


@dataclass(frozen=True)
class Step:
    """One guided call of the model.

    similarity: mean S of Eq. 8 over the people and pictures guided (NaN if none); share: RMS of the gradient over the RMS of the
    noise prediction inside the mask. mask: boolean [h, w] of the batch's first picture, CPU.
    """

    t: float
    sigma: float
    similarity: float
    share: float
    mask: torch.Tensor


@dataclass
class Trace:
    """All guided calls of one run, and how often and why a call stayed unguided."""

    steps: list[Step] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    mask: torch.Tensor | None = None
    """Last M_gen: float [B, H, W] at the picture's size, CPU."""

    def summary(self) -> str:
        """One line for the log."""
        values = [step.similarity for step in self.steps if step.similarity == step.similarity]
        parts = [f"{len(values)} of {len(self.steps)} calls guided"]
        if values:
            parts.append(f"S {values[0]:.3f} to {values[-1]:.3f}")
        parts += [f"{count} unguided: {reason}" for reason, count in self.skipped.items()]
        return "RB-Guidance: " + "; ".join(parts)

    def plot(self) -> torch.Tensor:
        """[1, H, W, 3] picture: S and the guided share over t, thumbnails of M_gen, and the reasons of unguided calls."""
        from PIL import Image, ImageDraw

        canvas = Image.new("RGB", (WIDTH, HEIGHT), "white")
        draw = ImageDraw.Draw(canvas)
        draw.text((20, 12), self.summary(), fill=INK)
        values = [step.similarity for step in self.steps]
        shares = [step.share for step in self.steps]
        _chart(draw, (70, 50, WIDTH - 20, 230), values, "S, mean similarity of matched features", SCORE, self.steps)
        _chart(draw, (70, 270, WIDTH - 20, 410), shares, "gradient / noise prediction, RMS in the mask", SHARE, self.steps)
        for i, step in _spread(self.steps, (WIDTH - 90) // (THUMBNAIL + 8)):
            thumb = Image.fromarray(step.mask.numpy().astype(np.uint8) * 255).resize((THUMBNAIL, THUMBNAIL), Image.NEAREST)
            canvas.paste(thumb.convert("RGB"), (70 + i * (THUMBNAIL + 8), 430))
            draw.rectangle((70 + i * (THUMBNAIL + 8), 430, 69 + i * (THUMBNAIL + 8) + THUMBNAIL, 429 + THUMBNAIL), outline=INK)
            draw.text((70 + i * (THUMBNAIL + 8), 432 + THUMBNAIL), f"t {step.t:.0f}", fill=INK)
        draw.text((14, 430), "M_gen", fill=INK)
        return torch.from_numpy(np.asarray(canvas).astype(np.float32) / 255)[None]


def _spread(steps: list[Step], room: int) -> list[tuple[int, Step]]:
    """At most `room` steps, evenly spread, with their places."""
    if not steps:
        return []
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(room, len(steps))).round().astype(int))
    return [(place, steps[i]) for place, i in enumerate(chosen)]


def _chart(draw, box: tuple, values: list[float], title: str, colour: tuple, steps: list[Step]) -> None:
    """A line over the steps with dots, its range on the left, t below."""
    x0, y0, x1, y1 = box
    draw.text((x0, y0 - 14), title, fill=colour)
    known = [v for v in values if v == v]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    pad = max((high - low) * 0.08, 1e-4)
    low, high = low - pad, high + pad
    for k in range(5):
        y = y1 - (y1 - y0) * k / 4
        draw.line((x0, y, x1, y), fill=GRID)
        draw.text((8, y - 6), f"{low + (high - low) * k / 4:.3f}", fill=INK)
    if not known:
        draw.text((x0 + 10, (y0 + y1) / 2), "no guided step", fill=INK)
        return
    places = [
        (x0 + 10 + (x1 - x0 - 20) * i / max(len(values) - 1, 1), y1 - (y1 - y0) * (v - low) / (high - low))
        for i, v in enumerate(values)
    ]
    for (a, va), (b, vb) in zip(zip(places, values), zip(places[1:], values[1:])):
        if va == va and vb == vb:
            draw.line((*a, *b), fill=colour, width=3)
    for (x, y), v in zip(places, values):
        if v == v:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    for i, step in _spread(steps, 12):
        index = steps.index(step)
        draw.text((places[index][0] - 10, y1 + 4), f"{step.t:.0f}", fill=INK)
