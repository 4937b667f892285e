"""One conditioning's rows of a model call: built as ComfyUI builds them, run through the private pass, and their
masks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..backbone.attention import Recording, install_recorders
from ..backbone.foreign import watch_patches
from ..backbone.private import PrivatePass
from ..backbone.tensors import map_tensors, some_rows
from ..guidance.omniportrait import mask as region
from ..guidance.omniportrait.settings import Settings
from .people import Person

LARGEST_FACE = 0.6
"""A mask over a larger share of the picture is a failed search, not a face."""


@dataclass(frozen=True, eq=False)
class Call:
    """What one call of apply_model was given: ComfyUI's batch of several conditionings' rows."""

    transformer_options: dict
    control: dict | None
    text: torch.Tensor | None

    @classmethod
    def of(cls, text: torch.Tensor | None, control: dict | None, transformer_options: dict) -> Call:
        """Copies ControlNet's lists, which the UNet pops as it goes."""
        control = {name: list(values) for name, values in control.items()} if control else None
        return cls(transformer_options, control, text)

    def places_of(self, uuid: object) -> list[int]:
        """Where in the batch of conditionings a uuid stands."""
        return [place for place, each in enumerate(self.transformer_options["uuids"]) if each == uuid]

    def has_text_of(self, cond: dict, place: int) -> bool:
        """Whether the rows at a place read a conditioning's own text (repeated, where another one is longer)."""
        own = cond.get("model_conds", {}).get("c_crossattn")
        if own is None or self.text is None:
            return False
        rows = len(self.text) // len(self.transformer_options["uuids"])
        there = self.text[place * rows, : own.cond.shape[1]]
        return torch.equal(there, own.cond[0].to(there))

    def control_of(self, place: int, like: torch.Tensor) -> dict | None:
        """ControlNet's residuals for the conditioning at a place, whose pictures are `like`; another card may have
        worked on the call (MultiGPU Work Units)."""
        rows = len(like)
        start, all_rows = place * rows, rows * len(self.transformer_options["uuids"])
        own = some_rows(self.control, [slice(start, start + rows)], all_rows)
        return map_tensors(own, lambda tensor: tensor.to(like.device))

    def options_of(self, place: int, device: torch.device, foreign_to_drop: tuple[str, ...]) -> dict:
        """A private copy of the call's transformer_options for one conditioning's rows alone, on a device.

        Wrappers and callbacks are left out: they are other packs' (caches, step counters), and our pass is not a step.
        """
        options = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in self.transformer_options.items()
            if name not in ("wrappers", "callbacks", *foreign_to_drop)
        }
        options["uuids"] = [options["uuids"][place]]
        options["cond_or_uncond"] = [options["cond_or_uncond"][place]]
        watch_patches(options)
        if self.control is not None or "output_block_patch" in options["patches"]:
            options["patches"].setdefault("input_block_patch_after_skip", []).append(spare_the_skip)
        return private_options(options)


def private_options(options: dict) -> dict:
    """Ask for PyTorch attention, whose backward is right; Sage, flash and chunked attention have none."""
    options["optimized_attention_override"] = lambda function, *args, **kwargs: plain_attention(*args, **kwargs)
    return options


def spare_the_skip(h: torch.Tensor, transformer_options: dict) -> torch.Tensor:
    """Give the next block an input of its own: ControlNet and other packs write into the skip connection, which is the
    same tensor, and the way back needs it as it was."""
    return h.clone()


def plain_attention(*args: object, **kwargs: object) -> torch.Tensor:
    """ComfyUI's attention by torch.nn.functional.scaled_dot_product_attention."""
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class Rows:
    """One conditioning's rows: its area of the picture, and what the private pass gave.

    x: the rows' input, on which the gradient is taken. area: (h, w, y, x) in latent pixels or None for all of the
    canvas (H, W). tokens: how many the text has in this pass, where nothing
    is padded; Conditioning (Concat) makes it more than the record's. guard: the pass's own, in which to take the
    gradient.
    """

    x: torch.Tensor
    canvas: tuple[int, int]
    area: list[int] | None
    features: torch.Tensor
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
    private: PrivatePass,
    part: object,
    call: Call,
    place: int,
    canvas: tuple[int, int],
    sigma: torch.Tensor,
    drop: tuple[str, ...],
) -> Rows:
    """Run one conditioning's rows through the private pass.

    part: what ComfyUI makes of the conditioning at this sigma (get_area_and_mult), of ordinary tensors.
    call, place: what ComfyUI's own call was given for these rows (Listener.call_of).
    canvas: (H, W) of the whole latent. sigma: [B]. Keep the caller's grad mode: with gradients, Rows.x is the leaf.
    """
    arguments = {name: value.cond for name, value in part.conditioning.items()}
    leaf = part.input_x.detach().clone()
    arguments["control"] = call.control_of(place, leaf)
    leaf.requires_grad_(torch.is_grad_enabled())
    options = call.options_of(place, leaf.device, drop)
    recording = install_recorders(options, private.sites(tuple(leaf.shape[-2:])), plain_attention)
    features = private.features(leaf, sigma, arguments, options)
    recording.close()
    tokens = arguments["c_crossattn"].shape[1]
    return Rows(leaf, tuple(canvas), part.area, features, recording, tokens, private.guard)


def face_maps(rows: Rows, people: tuple[Person, ...], settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 6 for each person: refined maps and M_gen, float and boolean [K, B, h, w] at the self-attention's size, CPU.

    People are kept apart by argmax; a region limits its person. A mask given by hand is taken as it is. The maps go to
    the CPU, where parts are labelled, all at once: each such way waits for the GPU.
    """
    refined, masks = [], []
    found = [
        region.refine(
            rows.recording.token_map(person.record.token_index, rows.tokens),
            rows.recording.smooth,
            settings.alpha,
            settings.gamma,
            settings.refinement,
        )
        for person in people
        if person.record is not None
    ]
    attended = iter(torch.stack(found).cpu() if found else ())
    for person in people:
        limit = None if person.mask is None else area_of(person.mask, rows)
        if person.record is None:
            size = tuple(rows.features.shape[-2:])
            mask = region.cover(limit, size).expand(len(rows.x), -1, -1)
            refined.append(mask.float())
            masks.append(mask)
            continue
        maps = next(attended)
        if limit is not None:
            maps = region.min_max(maps * region.cover(limit, tuple(maps.shape[-2:])))
        refined.append(maps)
        masks.append(region.threshold(maps, settings.beta))
    stacked = torch.stack(refined)
    return stacked, region.disjoint(stacked, torch.stack(masks))


def area_of(mask: torch.Tensor, rows: Rows) -> torch.Tensor:
    """[1, H, W] soft mask of the whole picture, at the latent's size and cut to the rows' area, CPU."""
    return rows.window(region.shrink(mask.cpu(), rows.canvas))


def failed(mask: torch.Tensor, person: Person, rows: Rows) -> str | None:
    """Why one picture's M_gen [h, w] cannot be used, or None."""
    part = rows.x[0, 0].numel() / (rows.canvas[0] * rows.canvas[1])
    if not mask.any():
        return f"no face found at {person.record.subject!r}" if person.record else "the mask is empty here"
    if person.record is not None and mask.float().mean() * part > LARGEST_FACE:
        return f"the mask of {person.record.subject!r} covers over {LARGEST_FACE:.0%} of the picture"
    return None
