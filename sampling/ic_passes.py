"""Progressive inference: each pass starts from the picture of the one before, noised less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ..backbone.family import LATENT_SCALE
from ..guidance.ic_portrait.settings import Settings
from ..models.faces import FaceReference
from ..models.ic.handle import ICHandle
from .ic_pictures import overview
from .ic_portrait import CELLS, note_unseen, patch
from .ic_run import Run, sized


@dataclass(frozen=True, eq=False)
class Painted:
    """picture: [1, S, S, 3] in 0..1. latent: of it. flow: what was matched in the last pass, [1, S, n S, 3]. passes:
    profile, style and each pass's picture, in a row."""

    picture: torch.Tensor
    latent: dict
    flow: torch.Tensor
    passes: torch.Tensor


def side_of(handle: ICHandle) -> int:
    """Pixels of the square that is painted: what the nets were trained at, to the nearest that a UNet can halve."""
    step = CELLS * LATENT_SCALE
    return max(step, round(handle.header.resolution / step) * step)


def style_latent(vae: object, style: FaceReference, side: int) -> dict:
    """The style picture's latent, for a sampler with denoise below 1."""
    return {"samples": vae.encode(sized(style.crop, side).movedim(1, -1))}


def paint(
    model: object,
    vae: object,
    handle: ICHandle,
    profile: FaceReference,
    style: FaceReference,
    settings: Settings,
    passes: Sequence[float],
    sampler: dict[str, object],
    side: int,
) -> Painted:
    """All passes. passes: the noise strength of each. sampler: what core's common_ksampler takes by name (seed, steps,
    cfg, sampler_name, scheduler, positive, negative); each pass has the next seed."""
    note_unseen(handle, profile, style, settings)
    runs: list[Run] = []
    pictures = [sized(profile.crop, side), sized(style.crop, side)]

    def patched(style: FaceReference) -> object:
        return patch(model, vae, handle, profile, style, settings, runs.append)

    made = list(repainted(patched, vae, style, passes, sampler, side))
    pictures += [picture.movedim(-1, 1).float().cpu() for _, picture in made]
    latent, picture = made[-1]
    matched = (runs[-1].flow, runs[-1].trusted) if runs else (None, None)
    row = torch.cat(pictures, -1).movedim(1, -1)
    return Painted(picture, latent, overview(*pictures[:2], *matched), row)


def repainted(
    patched: Callable[[FaceReference], object],
    vae: object,
    style: FaceReference,
    passes: Sequence[float],
    sampler: Mapping[str, object],
    side: int,
) -> Iterator[tuple[dict, torch.Tensor]]:
    """Each pass's latent and picture [1, S, S, 3]. patched: the model of a pass, by the style that it starts from.
    passes, sampler: as of `paint`."""
    import nodes  # ComfyUI's own

    for number, strength in enumerate(passes):
        latent = style_latent(vae, style, side)
        given = {**sampler, "seed": (int(sampler["seed"]) + number) % 2**64, "latent": latent, "denoise": strength}
        (latent,) = nodes.common_ksampler(patched(style), **given)
        picture = vae.decode(latent["samples"]).clamp(0, 1)
        yield latent, picture
        style = rescaled(style, picture)


def rescaled(style: FaceReference, picture: torch.Tensor) -> FaceReference:
    """The style whose crop is now a painted one, [1, S, S, 3]: the pose, and so the landmarks, are kept."""
    scale = picture.shape[1] / style.crop.shape[1]
    box = style.face_box and tuple(value * scale for value in style.face_box)
    landmarks = style.landmarks and tuple((x * scale, y * scale) for x, y in style.landmarks)
    return replace(style, crop=picture.float().cpu(), mask=None, face_box=box, landmarks=landmarks, more=())
