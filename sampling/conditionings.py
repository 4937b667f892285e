"""What ComfyUI has made of a guider's conditionings: which carry people, when they apply, and what each weighs.

ComfyUI copies each area to the guider's other lists, under its own uuid, with the text of one that is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from .people import People, Person, positive_keys

Lists = dict[str, list[tuple[dict, tuple[Person, ...]]]]
"""By key of the guider's, the conditionings of a list that carries people, and whom each carries itself (nobody,
often)."""


class Carrier(NamedTuple):
    """A conditioning that carries people; what ComfyUI makes of it at a sigma (get_area_and_mult), or None where it
    does not apply; the people; the share [B, C, H, W] of its list's prediction that is its own."""

    cond: dict
    part: object | None
    people: tuple[Person, ...]
    share: torch.Tensor


def lists_with_people(conds: dict[str, list[dict]], people: People) -> Lists:
    """conds: the guider's, processed."""
    found = {key: [(cond, people.get((key, cond["uuid"]), ())) for cond in conds[key]] for key in positive_keys(conds)}
    return {key: each for key, each in found.items() if any(own for _, own in each)}


def carriers(lists: Lists, x: torch.Tensor, sigma: float) -> Iterator[Carrier]:
    """The conditionings that carry people, at a sigma. x: [B, C, H, W]."""
    when = torch.full((len(x),), sigma)  # on the CPU
    for each in lists.values():
        parts, shares = weighted_parts([cond for cond, _ in each], x, when)
        for (cond, people), part, share in zip(each, parts, shares, strict=True):
            if people:
                yield Carrier(cond, part, people, share)


def ambiguous(conds: dict[str, list[dict]]) -> set:
    """The uuids under which several conditionings go (those copies)."""
    uuids = [cond["uuid"] for each in conds.values() for cond in each]
    return {uuid for uuid in uuids if uuids.count(uuid) > 1}


def applies(cond: dict, sigma: torch.Tensor) -> bool:
    """Whether a sigma lies in a conditioning's timestep range, as ComfyUI asks it; of a sigma on the CPU, so that no
    GPU is waited for."""
    start, end = cond.get("timestep_start"), cond.get("timestep_end")
    return not (start is not None and sigma > start) and not (end is not None and sigma < end)


def weighted_parts(conds: list[dict], x: torch.Tensor, sigma: torch.Tensor) -> tuple[list, list[torch.Tensor]]:
    """What ComfyUI makes of each conditioning (None where it does not apply), and each one's share of the prediction,
    [B, C, H, W]. A `default` conditioning weighs what the others leave. A copy predicts from its original's text, so
    its share is the original's.

    x: [B, C, H, W]. sigma: [B], which is compared only; on the CPU, so that no GPU is waited for.
    """
    import comfy.samplers

    parts = [comfy.samplers.get_area_and_mult(cond, x, sigma) for cond in conds]
    weights = [torch.zeros_like(x) for _ in conds]
    for cond, part, weight in zip(conds, parts, weights, strict=True):
        if part is not None and "default" not in cond:
            window = weight
            if part.area is not None:
                h, w, top, left = part.area
                window = weight[..., top : top + h, left : left + w]
            window += part.mult
    rest = (1 - sum(weights)).relu()
    for place, cond in enumerate(conds):
        if "default" in cond and parts[place] is not None:
            parts[place] = parts[place]._replace(mult=rest)
            weights[place] = rest
    total = sum(weights).clamp_min(1e-12)
    texts = [_text(cond) for cond in conds]
    return parts, [sum(w for w, text in zip(weights, texts, strict=True) if text == own) / total for own in texts]


def _text(cond: dict) -> int | object:
    """What tells a text: its own object, which copies share; of a conditioning without one, the uuid."""
    text = cond.get("model_conds", {}).get("c_crossattn")
    return cond["uuid"] if text is None else id(text)
