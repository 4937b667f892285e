"""Does the control map find the attribute? Against the renderer's own labels, on people nothing was trained on."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ...guidance.spf_portrait.settings import ControlMap
from ...sampling.dual_look import fine_control_map
from ..measures.segments import WORN
from ..measures.separation import auc
from ..world.attributes import ATTRIBUTES
from ..world.shards import HELD_OUT
from ..world.tailored import Tailored
from .campaign import markdown
from .spf_pictures import Customised, Studio

TIMES = (100, 250, 400, 550, 700, 850)
READINGS = {
    "N alone": ControlMap(gate="difference"),
    "S, measured": ControlMap(distance="constant"),
    "S, literal": ControlMap(reading="literal"),
}


def map_lines(studio: Studio, model: Customised, attribute: str, count: int) -> list[str]:
    """Lines of Markdown: pixel AUC, and the mean of the map inside and outside of the attribute, over the pictures."""
    pictures = list(Tailored((attribute,), people=count, pictures=count, first=HELD_OUT, light="", places=0))
    tuned, base = studio.model(model), studio.base
    lines = [["", *(f"t = {time}" for time in TIMES)]]
    sigmas = [float(base.net.model_sampling.sigmas[time]) for time in TIMES]
    for name, settings in READINGS.items():
        found: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in TIMES]
        for number, (_, portrait) in enumerate(pictures):
            picture = torch.from_numpy(portrait.picture).float()[None] / 255
            worn = torch.from_numpy(portrait.labels == WORN).float()[None, None]
            there = F.interpolate(worn, (32, 32), mode="area")[0, 0] > 0.5
            with torch.inference_mode():
                latent = base.vae.encode(picture)
                for each, sigma in zip(found, sigmas, strict=True):
                    result = fine_control_map(
                        base.model, tuned, base.clip, portrait.record["caption"], ATTRIBUTES[attribute].phrase, latent,
                        number, [sigma], settings,
                    )  # fmt: skip
                    each.append((result.control[0], there))
        lines.append([name, *map(_cell, found)])
    told = (
        f"Pixel AUC against the exact {attribute} (mean of the map inside / outside), {count} pictures of held-out "
        "people; docs/spf_portrait.md names the readings."
    )
    return ["## Where the map looks", "", told, "", markdown(lines), ""]


def _cell(found: list[tuple[torch.Tensor, torch.Tensor]]) -> str:
    inside = torch.cat([control[there] for control, there in found])
    outside = torch.cat([control[~there] for control, there in found])
    if not len(inside):
        return "–"
    return f"{auc(outside, inside):.3f} ({inside.mean():.2f} / {outside.mean():.2f})"
