"""Pictures of what the nets have learned: what they see, where they match, and portraits by ComfyUI's own sampler."""

from __future__ import annotations

import torch

from ...guidance.ic_portrait.flow import affine, warp
from ...guidance.ic_portrait.settings import Settings
from ...models.faces import FaceReference
from ...models.faces.geometry import similarity
from ...models.ic.file import ICHeader
from ...models.ic.handle import ICHandle
from ...models.ic.nets import ICNets
from ...sampling.ic_pictures import flow_colours
from ...sampling.ic_portrait import patch
from ..base import Base
from ..data.plan import Slot
from .config import Config
from .pairs import Pair, Pairs
from .step import Learner, subject_text

SAMPLER, SCHEDULER, CFG, STRENGTH = "ddim", "normal", 3.0, 0.7


def fixed_pairs(pairs: Pairs, count: int) -> list[Pair]:
    """The first usable ones."""
    found: list[Pair] = []
    for number in range(len(pairs.entries)):
        pair = pairs[Slot(number, -1, number)]
        found += [] if pair.problem else [pair]
        if len(found) == count:
            break
    return found


def handle_of(learner: Learner, header: ICHeader, base: Base) -> ICHandle:
    """The nets as they are, for the pack's own patch: layers that cast themselves, of the same values."""
    import comfy.ops
    from comfy.model_patcher import ModelPatcher

    nets = ICNets(header.shape, comfy.ops.manual_cast, header.matching_levels, device="meta")
    values = learner.nets.state_dict()
    nets.load_state_dict({name: values[name] for name in nets.state_dict()}, assign=True)
    held = [net and ModelPatcher(net, base.device, base.device) for net in (nets.appearance, nets.matching)]
    return ICHandle("the nets in training", header, *held)


def as_reference(pixels: torch.Tensor, landmarks: torch.Tensor) -> FaceReference:
    """A picture of a pair as Face Reference would give it, without a face's box. landmarks: [5, 2] in shares of it."""
    crop = pixels.movedim(0, -1)[None].float() / 255
    side = crop.shape[1]
    places = tuple((x * side, y * side) for x, y in landmarks.tolist())
    return FaceReference(crop, None, (0.0, 0.0, float(side), float(side)), "training", None, places)


def portrait(base: Base, handle: ICHandle, pair: Pair, config: Config, seed: int) -> torch.Tensor:
    """[3, S, S] in 0..1: the pair's lit picture painted as its profile's person, sampled as KSampler does."""
    import comfy.sample

    own = config.objective
    settings = Settings(light=own.light / 2, alpha=own.alpha, beta=own.beta, flow=own.flow, seed=seed)
    profile, lit = as_reference(pair.profile, pair.landmarks[1]), as_reference(pair.lit, pair.landmarks[0])
    latent = base.vae.encode(lit.crop)
    empty = base.empty_text().rows
    rows = empty if config.context == "empty" else subject_text(base, pair.subject)
    patched = patch(base.model, base.vae, handle, profile, lit, settings)
    noise = comfy.sample.prepare_noise(latent, seed)
    steps = config.report_steps
    result = comfy.sample.sample(
        patched, noise, steps, CFG, SAMPLER, SCHEDULER, [[rows[None], {}]], [[empty[None], {}]], latent,
        denoise=STRENGTH, disable_pbar=True, seed=seed,
    )  # fmt: skip
    return base.vae.decode(result)[0].movedim(-1, 0).float().cpu().clamp(0, 1)


@torch.no_grad()
def sheet(base: Base, learner: Learner, header: ICHeader, pairs: Pairs, config: Config) -> torch.Tensor:
    """[3, rows * S, 6 * S] in 0..1: profile, masked, lit, flow, the profile warped, portrait; one pair a row."""
    handle, rows = handle_of(learner, header, base), []
    for number, pair in enumerate(fixed_pairs(pairs, config.report_samples)):
        profile, masked, lit = (each.float() / 255 for each in (pair.profile, pair.masked, pair.lit))
        size = tuple(lit.shape[-2:])
        flow = affine(similarity(*pair.landmarks[:, None]), size)
        base.let_go()
        made = portrait(base, handle, pair, config, number)
        tiles = [profile, masked, lit, flow_colours(flow)[0], warp(profile[None], flow)[0], made]
        rows.append(torch.cat(tiles, 2))
    return torch.cat(rows, 1)
