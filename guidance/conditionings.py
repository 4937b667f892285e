"""What ComfyUI has made of a guider's conditionings: which carry people, when they apply, and what each weighs."""

from __future__ import annotations

import torch

from .people import People, Person, positive_keys


def carriers(conds: dict[str, list[dict]], people: People) -> dict[str, list[tuple[dict, tuple[Person, ...]]]]:
    """By key, each conditioning of a list that carries people, and whom it carries itself (nobody, often).

    conds: the guider's, processed. ComfyUI then has copied each area to the other keys, under its own uuid, with the
    text of one that is there: such a copy carries whom that text names. Call at each prediction: cheap.
    """
    found = {}
    for key in positive_keys(conds):
        named = {_text(c): people[key, c["uuid"]] for c in conds[key] if (key, c["uuid"]) in people}
        if named:
            found[key] = [(cond, named.get(_text(cond), ())) for cond in conds[key]]
    return found


def _text(cond: dict) -> int | object:
    """What tells a text: its own object, which copies share; of a conditioning without one, the uuid."""
    text = cond.get("model_conds", {}).get("c_crossattn")
    return cond["uuid"] if text is None else id(text)


def ambiguous(conds: dict[str, list[dict]]) -> set:
    """The uuids under which several conditionings go (those copies)."""
    uuids = [cond["uuid"] for each in conds.values() for cond in each]
    return {uuid for uuid in uuids if uuids.count(uuid) > 1}


def applies(cond: dict, sigma: torch.Tensor) -> bool:
    """Whether a sigma lies in a conditioning's timestep range, as ComfyUI asks it; of a sigma on the CPU, so that no
    GPU is waited for."""
    start, end = cond.get("timestep_start"), cond.get("timestep_end")
    return not (start is not None and sigma > start) and not (end is not None and sigma < end)


def weighted_parts(conds: list[dict], x: torch.Tensor, sigma: torch.Tensor) -> tuple[list, torch.Tensor]:
    """What ComfyUI makes of each conditioning (None where it does not apply), and the total weight [B, C, H, W] of
    their predictions. A `default` conditioning weighs what the others leave.

    x: [B, C, H, W]. sigma: [B], which is compared only; on the CPU, so that no GPU is waited for.
    """
    import comfy.samplers

    parts = [comfy.samplers.get_area_and_mult(cond, x, sigma) for cond in conds]
    total = torch.zeros_like(x)
    for cond, part in zip(conds, parts, strict=True):
        if part is not None and "default" not in cond:
            window = total
            if part.area is not None:
                h, w, top, left = part.area
                window = total[..., top : top + h, left : left + w]
            window += part.mult
    rest = (1 - total).relu()
    for place, cond in enumerate(conds):
        if "default" in cond and parts[place] is not None:
            parts[place] = parts[place]._replace(mult=rest)
            total = total + rest
    return parts, total
