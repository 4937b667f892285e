"""One conditioning's rows of a model call: built as ComfyUI builds them, run through the private twin, and their
masks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..backbone.attention import Recording, record_attention
from ..backbone.private import PrivateTwin
from ..guidance.omniportrait.mask import cover, disjoint, min_max, prominence, refine, shrink, threshold
from ..guidance.omniportrait.settings import Settings
from .people import Person
from .recorder import Recorded

LARGEST_FACE = 0.6
"""A mask over a larger share of the picture is a failed search, not a face."""


@dataclass(frozen=True, eq=False)
class Rows:
    """One conditioning's rows: its area of the picture, and what the private pass gave.

    x: the rows' input, on which the gradient is taken. canvas: (H, W) of the whole latent. area: (h, w, y, x) in latent
    pixels or None for all of it. features: [B, C, h, w]. denoised: of a pass that went on. tokens: how many the text
    has in this pass, where nothing is padded; Conditioning (Concat) makes it more than the record's. guard: the pass's
    own, in which to take the gradient.
    """

    x: torch.Tensor
    canvas: tuple[int, int]
    area: list[int] | None
    features: torch.Tensor
    denoised: torch.Tensor | None
    recording: Recording
    tokens: int
    guard: Callable[[], contextlib.AbstractContextManager]

    def window(self, canvas: torch.Tensor) -> torch.Tensor:
        """The rows' area of a [..., H, W] canvas."""
        if self.area is None:
            return canvas
        h, w, y, x = self.area
        return canvas[..., y : y + h, x : x + w]

    def paste(self, values: torch.Tensor, canvas: torch.Tensor) -> None:
        """Add [B, *, h, w] values at the rows' area of a [B, *, H, W] canvas."""
        self.window(canvas).add_(values)


def run_rows(
    twin: PrivateTwin,
    block: int,
    part: object,
    recorded: Recorded,
    canvas: tuple[int, int],
    sigma: torch.Tensor,
    go_on: bool = False,
) -> Rows:
    """Run one conditioning's rows through the private twin, as far as a feature block or (`go_on`) to the end.

    part: what ComfyUI makes of the conditioning at this sigma (get_area_and_mult), of ordinary tensors. canvas: (H, W)
    of the whole latent. sigma: [B]. Keep the caller's grad mode: with gradients, Rows.x is the leaf.
    """
    leaf = part.input_x.detach().clone()
    arguments = {name: value.cond for name, value in part.conditioning.items()}
    arguments["control"] = recorded.call.control_of(recorded.place, leaf)
    leaf.requires_grad_(torch.is_grad_enabled())
    options = recorded.call.options_of(recorded.place, leaf.device)
    recording = record_attention(options, twin.family.sites(block, tuple(leaf.shape[-2:])))
    features, denoised = twin.tap(block, leaf, sigma, arguments, options, go_on)
    recording.close()
    tokens = arguments["c_crossattn"].shape[1]
    return Rows(leaf, tuple(canvas), part.area, features, denoised, recording, tokens, twin.guard)


def face_maps(
    rows: Rows, people: tuple[Person, ...], settings: Settings, references: Sequence[float] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 6 for each person: refined maps and M_gen, float and boolean [K, B, h, w] at the self-attention's size, CPU.

    People are kept apart by argmax; a region limits its person. A mask given by hand is taken as it is. references: of
    each person the height on the own photographs; who is not in the picture gets an empty mask. The maps go to the
    CPU, where parts are labelled, all at once: each such way waits for the GPU.
    """
    s, recording = settings, rows.recording
    columns = [person.record.token_index for person in people if person.record is not None]
    maps_of = [recording.token_map(column, rows.tokens) for column in columns]
    found = [refine(each, recording.smooth, s.alpha, s.gamma, s.refinement) for each in maps_of]
    attended = iter(torch.stack(found).cpu() if found else ())
    asked = s.presence > 0 and any(references)
    spread = iter([recording.spread(column, rows.tokens).cpu() for column in columns] if asked else ())
    refined, masks = [], []
    for k, person in enumerate(people):
        bound = None if person.mask is None else rows.window(shrink(person.mask.cpu(), rows.canvas))
        if person.record is None:
            mask = cover(bound, tuple(rows.features.shape[-2:])).expand(len(rows.x), -1, -1)
            refined.append(mask.float())
            masks.append(mask)
            continue
        maps = next(attended)
        if bound is not None:
            maps = min_max(maps * cover(bound, tuple(maps.shape[-2:])))
        refined.append(maps)
        mask = threshold(maps, s.beta)
        if asked:
            mask = mask & (prominence(next(spread)) >= s.presence * references[k]).view(-1, 1, 1)
        masks.append(mask)
    stacked = torch.stack(refined)
    return stacked, disjoint(stacked, torch.stack(masks))


def failure(mask: torch.Tensor, person: Person, rows: Rows) -> str | None:
    """Why one picture's M_gen [h, w] cannot be used, or None."""
    part = rows.x[0, 0].numel() / (rows.canvas[0] * rows.canvas[1])
    if not mask.any():
        return f"no face found at {person.record.subject!r}" if person.record else "the mask is empty here"
    if person.record is not None and mask.float().mean() * part > LARGEST_FACE:
        return f"the mask of {person.record.subject!r} covers over {LARGEST_FACE:.0%} of the picture"
    return None
