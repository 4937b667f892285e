"""FastComposer's augmentation of the reference face: the only defence against copying where reference and target are
one picture (SPEC 1A.1; FastComposer, Xiao et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Augmentation:
    """Probabilities of each change to the reference face (FastComposer's), and their sizes.

    box: the face box moves and grows by up to this share of its side. zoom: up to this factor.
    rotate: degrees. colour: share by which brightness, contrast and saturation change. background_chance: that all
    outside the face's mask becomes noise. FastComposer does so always, also at inference; here the encoder has to know
    faces as they come, so it is a chance.
    """

    box: float = 0.1
    zoom: float = 2.0
    zoom_chance: float = 0.5
    rotate: float = 30.0
    rotate_chance: float = 0.75
    flip_chance: float = 0.5
    elastic_chance: float = 0.5
    colour: float = 0.5
    colour_chance: float = 0.5
    blur_chance: float = 0.5
    grey_chance: float = 0.1
    background_chance: float = 0.5


def moved_box(box: Box, share: float, random: torch.Generator) -> Box:
    """A face box as another detector may have drawn it: shifted and grown by up to `share` of its sides."""
    x0, y0, x1, y1 = box
    dx, dy, grow = ((torch.rand(3, generator=random) * 2 - 1) * share).tolist()
    width, height = x1 - x0, y1 - y0
    middle_x, middle_y = (x0 + x1) / 2 + dx * width, (y0 + y1) / 2 + dy * height
    half_x, half_y = width * (1 + grow) / 2, height * (1 + grow) / 2
    return middle_x - half_x, middle_y - half_y, middle_x + half_x, middle_y + half_y


def over_noise(face: torch.Tensor, mask: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """A face [3, S, S] in 0..1 before noise instead of its background; mask: [1, H, W], 1 where the face is."""
    inside = F.interpolate(mask[None], face.shape[-2:], mode="area")[0]
    return torch.lerp(torch.rand(face.shape, generator=random), face, inside)


def augment(face: torch.Tensor, settings: Augmentation, random: torch.Generator) -> torch.Tensor:
    """A face [3, S, S] in 0..1, changed as the settings say; the same generator state gives the same picture."""
    chance = torch.rand(7, generator=random).tolist()
    face = _warped(face, settings, chance, random)
    if chance[4] < settings.colour_chance:
        face = _coloured(face, settings.colour, random)
    if chance[5] < settings.blur_chance:
        face = _blurred(face, random)
    if chance[6] < settings.grey_chance:
        face = _grey(face).expand(3, -1, -1)
    return face.clamp(0, 1)


def _warped(face: torch.Tensor, settings: Augmentation, chance: list[float], random: torch.Generator) -> torch.Tensor:
    """Zoom, rotation, mirror and elastic deformation in one resampling."""
    values = torch.rand(2, generator=random).tolist()
    wave = torch.rand(1, 2, 4, 4, generator=random) * 2 - 1
    zoom = 1 + (settings.zoom - 1) * values[0] if chance[0] < settings.zoom_chance else 1.0
    angle = math.radians(settings.rotate * (2 * values[1] - 1)) if chance[1] < settings.rotate_chance else 0.0
    mirror = -1.0 if chance[2] < settings.flip_chance else 1.0
    elastic = chance[3] < settings.elastic_chance
    if zoom == 1 and angle == 0 and mirror == 1 and not elastic:
        return face
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    matrix = torch.tensor([[[cos * mirror, -sin, 0.0], [sin * mirror, cos, 0.0]]])
    grid = F.affine_grid(matrix, [1, *face.shape], align_corners=False)
    if elastic:
        grid = grid + 0.06 * F.interpolate(wave, face.shape[-2:], mode="bicubic").movedim(1, -1)
    return F.grid_sample(face[None], grid, padding_mode="border", align_corners=False)[0]


def _grey(face: torch.Tensor) -> torch.Tensor:
    return (face * face.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)


def _coloured(face: torch.Tensor, share: float, random: torch.Generator) -> torch.Tensor:
    """Brightness, contrast and saturation, each changed by up to `share`."""
    brightness, contrast, saturation = (1 + share * (torch.rand(3, generator=random) * 2 - 1)).tolist()
    face = face * brightness
    face = (face - face.mean()) * contrast + face.mean()
    grey = _grey(face)
    return (face - grey) * saturation + grey


def _blurred(face: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Gaussian, of 0.1 to 1 pixels for each 100 of the side."""
    sigma = (0.1 + 0.9 * float(torch.rand((), generator=random))) * face.shape[-1] / 100
    reach = max(1, math.ceil(2.5 * sigma))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    line = (line / line.sum()).to(face)
    padded = F.pad(face[:, None], [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, line.view(1, 1, 1, -1)), line.view(1, 1, -1, 1))[:, 0]
