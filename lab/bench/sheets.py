"""Pictures for people: variants side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

from .judge import picture_of
from .portraits import Case, Studio, Variant, sitter, wanted

HEAD, FOOT = 32, 16
"""Pixels for the names above, in two lines where they have a comma, and the prompt below."""


def contact_sheet(studio: Studio, variants: Sequence[Variant], cases: Sequence[Case], side: int = 192) -> Image.Image:
    """A line for each case: the reference, then the variants; above them their names, below the prompt."""
    sheet = Image.new("RGB", (side * (len(variants) + 1), HEAD + len(cases) * (side + FOOT)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(["reference", *(variant.name for variant in variants)]):
        draw.text((column * side + 4, 3), name.replace(", ", ",\n"), fill="black")
    for line, case in enumerate(cases):
        prompt, subject = wanted(case)
        pictures = [picture_of(sitter(case.person))]
        pictures += [studio.portrait(case, variant).picture for variant in variants]
        top = HEAD + line * (side + FOOT)
        for column, picture in enumerate(pictures):
            sheet.paste(_tile(picture, side), (column * side, top))
        draw.text((4, top + side + 1), prompt.text(subject), fill="black")
    return sheet


def _tile(picture: torch.Tensor, side: int) -> Image.Image:
    pixels = (picture.movedim(0, -1) * 255).round().byte().numpy()
    return Image.fromarray(pixels).resize((side, side), Image.LANCZOS)


def one_each(cases: Sequence[Case], count: int) -> list[Case]:
    """The first case of each of the first people, who have different prompts."""
    first: dict[int, Case] = {}
    for case in cases:
        first.setdefault(case.person, case)
    return list(first.values())[:count]
