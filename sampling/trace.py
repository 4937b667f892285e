"""What a guided run did, step by step, and a small plot of it for people."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch

from ..backbone.clock import Clock
from ..backbone.family import picture_size
from .gradient import CallGradient

log = logging.getLogger("omniportrait")

WIDTH, HEIGHT, THUMBNAIL = 960, 540, 72
INK, GRID, SCORE, SHARE, REFUSED = (35, 35, 40), (225, 225, 230), (31, 119, 180), (214, 100, 30), (150, 60, 30)


@dataclass(frozen=True, eq=False)
class Step:
    """One guided call of the model.

    similarity: mean S over the people and pictures guided (NaN if none); share: RMS of the gradient over the RMS of the
    noise prediction inside the mask. mask: boolean [h, w] of the batch's first picture, CPU, where it was guided;
    found: the same before masks that cannot be used (too large, say) were dropped.
    """

    t: float
    sigma: float
    similarity: float
    share: float
    mask: torch.Tensor
    found: torch.Tensor


@dataclass
class Trace:
    """All guided calls of one run, and how often and why a call stayed unguided."""

    steps: list[Step] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    mask: torch.Tensor | None = None
    """Last M_gen: boolean [B, 1, h, w] at the latent's size, CPU."""

    def mask_for(self, samples: torch.Tensor) -> torch.Tensor:
        """The last M_gen, float [B, H, W] at the picture's size; an empty one for [B, C, h, w] samples when no step was
        guided."""
        if self.mask is None:
            return torch.zeros(len(samples), *picture_size(samples))
        return torch.nn.functional.interpolate(self.mask.float(), size=picture_size(self.mask))[:, 0]

    def summary(self) -> str:
        """One line for the log."""
        values = [step.similarity for step in self.steps if step.similarity == step.similarity]
        if not self.steps:
            return "RB-Guidance: no call guided, because u, start_percent and end_percent leave no step"
        parts = [f"{len(values)} of {len(self.steps)} calls guided"]
        if values:
            parts.append(f"S {values[0]:.3f} to {values[-1]:.3f}")
        parts += [f"unguided {count} times because {reason}" for reason, count in self.skipped.items()]
        return "RB-Guidance: " + "; ".join(parts)

    def plot(self) -> torch.Tensor:
        """[1, H, W, 3] picture: S and the guided share over t, thumbnails of M_gen, and the reasons of unguided
        calls."""
        from PIL import Image, ImageDraw

        canvas = Image.new("RGB", (WIDTH, HEIGHT), "white")
        draw = ImageDraw.Draw(canvas)
        draw.text((20, 12), self.summary(), fill=INK)
        values = [step.similarity for step in self.steps]
        shares = [step.share for step in self.steps]
        _chart(draw, (70, 50, WIDTH - 20, 230), values, "S, mean similarity of matched features", SCORE, self.steps)
        _chart(
            draw, (70, 270, WIDTH - 20, 410), shares, "gradient / noise prediction, RMS in the mask", SHARE, self.steps
        )
        for place, i in enumerate(_spread(len(self.steps), (WIDTH - 90) // (THUMBNAIL + 8))):
            corner = (70 + place * (THUMBNAIL + 8), 430)
            thumb = _thumbnail(self.steps[i])
            canvas.paste(thumb, corner)
            draw.rectangle((*corner, corner[0] + thumb.width - 1, corner[1] + thumb.height - 1), outline=INK)
            draw.text((corner[0], corner[1] + THUMBNAIL + 2), f"t {self.steps[i].t:.0f}", fill=INK)
        draw.text((14, 430), "M_gen", fill=INK)
        return torch.from_numpy(np.asarray(canvas).astype(np.float32) / 255)[None]


class Notes:
    """The trace while it is written. Numbers may still be on their way, and asking a GPU for one makes the whole step
    wait, so they are read all at the end."""

    def __init__(self) -> None:
        self._trace = Trace()
        self._unread: list[tuple] = []

    def guided(
        self, sigma: float, gradient: CallGradient, share: torch.Tensor, finite: torch.Tensor, effect: torch.Tensor
    ) -> None:
        """A call with this gradient. Scalars: share as in Step; whether all that was guided is finite; whether it
        changes anything that is sampled."""
        self._trace.skipped.update(reason for _, reason in gradient.reasons)
        self._trace.mask = gradient.mask
        similarities = [each for _, each in gradient.similarities]
        self._unread.append((sigma, similarities, share, finite, effect, gradient.mask[0, 0], gradient.found[0, 0]))

    def unguided(self, sigma: float, shape: torch.Size, *reasons: str) -> None:
        """A call for a latent of this shape [B, C, H, W] that could not be guided at all."""
        nothing = CallGradient.nothing(torch.zeros(shape), [])  # on the CPU: the device may have no memory left
        nothing.reasons.extend((None, reason) for reason in reasons)
        self.guided(sigma, nothing, torch.tensor(0.0), torch.tensor(True), torch.tensor(False))

    def read(self, clock: Clock) -> Trace:
        """The trace; and one line in the log, a warning if any call stayed unguided."""
        trace, nan = self._trace, float("nan")
        for sigma, similarities, share, finite, effect, mask, found in self._unread:
            guided = bool(similarities) and bool(effect)
            mean = sum(map(float, similarities)) / len(similarities) if guided else nan
            trace.steps.append(Step(clock.t(sigma), sigma, mean, float(share) if guided else nan, mask, found))
            if not finite:
                trace.skipped["the gradient was not finite"] += 1
            elif similarities and not guided:
                trace.skipped["the gradient was zero"] += 1
        self._unread.clear()
        if trace.steps or trace.skipped:
            log.log(logging.WARNING if trace.skipped else logging.INFO, trace.summary())
        return trace


def _thumbnail(step: Step):
    """M_gen in white; what was found but could not be used in rust."""
    from PIL import Image

    picture = np.zeros((*step.found.shape, 3), np.uint8)
    picture[step.found.numpy()] = REFUSED
    picture[step.mask.numpy()] = 255
    scale = THUMBNAIL / max(step.found.shape)
    h, w = (max(round(side * scale), 1) for side in step.found.shape)
    return Image.fromarray(picture).resize((w, h), Image.NEAREST)


def _spread(count: int, room: int) -> list[int]:
    """At most `room` of `count` places, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(room, count)).round().astype(int)).tolist() if count else []


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
    for (a, va), (b, vb) in itertools.pairwise(zip(places, values, strict=True)):
        if va == va and vb == vb:
            draw.line((*a, *b), fill=colour, width=3)
    for (x, y), v in zip(places, values, strict=True):
        if v == v:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    for i in _spread(len(steps), 12):
        draw.text((places[i][0] - 10, y1 + 4), f"{steps[i].t:.0f}", fill=INK)
