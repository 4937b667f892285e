"""One micro-batch of a stage: what is random about a pair, what the nets see, its losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ...backbone.attention import private_options
from ...guidance.ic_portrait import flow as matching
from ...guidance.ic_portrait import objective as loss
from ...guidance.ic_portrait.aggregate import aggregated
from ...guidance.ic_portrait.masking import halves, joined
from ...models.faces.geometry import similarity
from ...models.ic.nets import ICNets
from ...sampling.ic_run import MATCHED_AT
from ..base import Base
from ..data.plan import Slot
from ..loop import seeded
from ..task import Losses
from .config import Config
from .pairs import Pair


@dataclass(frozen=True, eq=False)
class Inputs:
    """A micro-batch on the CPU. profile, lit, masked: latents [B, C, h, w]. face: [B, h, w]. transform: [B, 2, 3] from
    the lit picture's shares to the profile's, by landmarks. flow: [B, h, w, 2]; known: boolean [B, h, w]. rows: [B, 77,
    D]. weights: [B], 0 for bad pairs. problems: their reasons."""

    profile: torch.Tensor
    lit: torch.Tensor
    masked: torch.Tensor
    face: torch.Tensor
    transform: torch.Tensor
    flow: torch.Tensor
    known: torch.Tensor
    rows: torch.Tensor
    weights: torch.Tensor
    slots: list[Slot]
    problems: dict[int, str]


@dataclass(frozen=True, eq=False)
class Draw:
    """noise: of both halves, [B, C, h, 2 w]. timesteps: [B]. without_text: boolean [B]."""

    noise: torch.Tensor
    timesteps: torch.Tensor
    without_text: torch.Tensor


def gather(pairs: Sequence[Pair], base: Base, config: Config) -> Inputs:
    """Tensors of a micro-batch, computed now: crops and masks are drawn anew each time."""
    rows = [subject_text(base, pair.subject if config.context == "text" else "") for pair in pairs]

    def stacked(name: str) -> torch.Tensor:
        return torch.stack([getattr(pair, name) for pair in pairs])

    latents = base.latents(torch.cat([stacked(name) for name in ("profile", "lit", "masked")]))
    lit, profile = stacked("landmarks").unbind(1)
    problems = {pair.slot.sample: pair.problem for pair in pairs if pair.problem}
    weights = torch.tensor([pair.weight for pair in pairs])
    return Inputs(
        *latents.chunk(3), stacked("face"), similarity(lit, profile), stacked("flow"), stacked("known"),
        torch.stack(rows), weights, [pair.slot for pair in pairs], problems,
    )  # fmt: skip


def subject_text(base: Base, subject: str) -> torch.Tensor:
    """[77, D] of "a photo of a woman", each encoded once; of nothing where there is no subject."""
    if not subject:
        return base.empty_text().rows
    known = base.__dict__.setdefault("subject_texts", {})
    if subject not in known:
        known[subject] = base.text(f"a photo of a {subject}", subject).rows
    return known[subject]


def draw(inputs: Inputs, timesteps: int, config: Config) -> Draw:
    """Chance, from the run's seed and each pair's epoch and position alone."""
    noise, times, texts = [], [], []
    _, channels, height, width = inputs.lit.shape
    for slot in inputs.slots:
        random = seeded(config.seed, slot.epoch, slot.position, "noise")
        times.append(torch.randint(timesteps, (), generator=random))
        texts.append(torch.rand((), generator=random) < config.objective.drop_context)
        noise.append(torch.randn(channels, height, 2 * width, generator=random))
    return Draw(torch.stack(noise), torch.stack(times), torch.stack(texts))


class Learner(nn.Module):
    """Both nets, and the zero convolutions by which the matching net learns from the denoising loss; those are not
    exported."""

    def __init__(self, nets: ICNets, alpha: float, beta: float) -> None:
        super().__init__()
        self.nets, self.alpha, self.beta = nets, alpha, beta
        self.zero = nn.ModuleList()
        if nets.matching is not None:
            self.zero.extend(nn.Conv2d(width, width, 1) for width in nets.shape.widths)
            for weight in self.zero.parameters():
                nn.init.zeros_(weight)

    def forward(
        self, wanted: str, condition: torch.Tensor, timesteps: torch.Tensor, rows: torch.Tensor,
        flow: torch.Tensor | None = None,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:  # fmt: skip
        """The features of a net, and residuals for the UNet; what is not wanted is empty, since several processes wait
        for a gradient of all that is given.

        wanted: "appearance", or of the matching net "correspondence" (features), "denoising" (residuals), "both".
        flow: by which the appearance net's profile is warped.
        """
        options = private_options({})
        if wanted == "appearance":
            features = self.nets.appearance(condition, timesteps, rows, options)
            together = aggregated(features, [flow] * len(features), self.alpha, self.beta)
            return [], self.nets.appearance.residuals(together)
        features = self.nets.matching(condition, timesteps, rows, options)
        if wanted == "correspondence":
            return features, []
        residuals = [layer(each) for layer, each in zip(self.zero, features, strict=True)]
        return features if wanted == "both" else [], residuals


def matched_levels(features: Sequence[torch.Tensor], finest: int) -> list[int]:
    """The last features of each size from level `finest` on."""
    sizes = [each.shape[-2:] for each in features]
    last = [level for level in range(len(sizes)) if level + 1 == len(sizes) or sizes[level + 1] != sizes[level]]
    return [level for level in last if level >= finest]


def losses(learner: Learner, inputs: Inputs, base: Base, config: Config, stage: str) -> Losses:
    """Summed over a micro-batch."""
    device, chance = base.device, draw(inputs, base.timesteps, config)
    rows = rows_of(inputs, chance, base)
    condition = joined(inputs.profile, inputs.masked).to(device)
    weights, times = inputs.weights.to(device), chance.timesteps.to(device)
    wanted = config.matching.objective if stage == "matching" else "appearance"
    flow = flow_of(learner, inputs, condition, rows, config) if stage == "appearance" else None
    features, residuals = learner(wanted, condition, times.float(), rows, flow)
    total, parts = torch.zeros((), device=device), {}
    if features:
        told = correspondence(features, inputs, config.matching.level)
        known = weights * inputs.known.flatten(1).any(1).to(device)
        total = total + (told * known).sum()
        parts["correspondence"] = ((told * known).sum(), known.sum())
    if residuals:
        both = of_halves(*denoising(base, inputs, chance, rows, residuals, config), weights, config)
        total, parts = total + both.total, {**parts, **both.parts}
    return Losses(total, parts)


def rows_of(inputs: Inputs, chance: Draw, base: Base) -> torch.Tensor:
    """[B, 77, D] on the device: each pair's text, or none where chance leaves it out."""
    return torch.where(chance.without_text[:, None, None], base.empty_text().rows, inputs.rows).to(base.device)


def of_halves(left: torch.Tensor, right: torch.Tensor, weights: torch.Tensor, config: Config) -> Losses:
    """Of both halves' errors [B]."""
    profile = config.objective.profile
    parts = {name: ((each * weights).sum(), weights.sum()) for name, each in (("left", left), ("right", right))}
    return Losses(((profile * left + right) / (1 + profile) * weights).sum(), parts)


def correspondence(features: Sequence[torch.Tensor], inputs: Inputs, finest: int) -> torch.Tensor:
    """[B]: the mean over the levels that are matched."""
    told = []
    for level in matched_levels(features, finest):
        profile, lit = halves(features[level])
        flow, known = loss.at_size(inputs.flow, inputs.known, tuple(lit.shape[-2:]))
        told.append(loss.correspondence(matching.cost_volume(profile, lit), flow.to(lit.device), known.to(lit.device)))
    return torch.stack(told).mean(0)


def flow_of(
    learner: Learner, inputs: Inputs, condition: torch.Tensor, rows: torch.Tensor, config: Config
) -> torch.Tensor | None:
    """The flow [B, h, w, 2] by which the appearance net's profile is warped, without a gradient; the matching net's is
    near the landmarks', as it is in use."""
    if config.objective.flow == "none":
        return None
    near = matching.affine(inputs.transform.to(condition.device), tuple(inputs.lit.shape[-2:]))
    if config.objective.flow == "landmarks":
        return near
    nets = learner.module.nets if hasattr(learner, "module") else learner.nets  # accelerate's wrapper
    with torch.no_grad():
        time = torch.full((len(condition),), MATCHED_AT, device=condition.device)
        profile, lit = halves(nets.matching(condition, time, rows, private_options({}))[config.matching.level])
        size = tuple(lit.shape[-2:])
        return matching.match(matching.cost_volume(profile, lit), size, matching.resized(near, size))


def denoising(
    base: Base, inputs: Inputs, chance: Draw, rows: torch.Tensor, residuals: Sequence[torch.Tensor], config: Config
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 3 of the profile's and the lit half, [B] each, as the config weighs them."""
    noise = chance.noise.to(base.device)
    predicted = predict(base, joined(inputs.profile, inputs.lit), noise, chance.timesteps, rows, residuals)
    places = 1 + (config.objective.face - 1) * inputs.face.to(base.device)
    both = loss.both_halves(predicted, noise, places)
    if not config.objective.picture_error:
        return both
    larger = base.sigma(chance.timesteps).square().clamp(max=config.objective.picture_error)
    return both[0] * larger, both[1] * larger


def predict(
    base: Base, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, rows: torch.Tensor,
    residuals: Sequence[torch.Tensor] | None,
) -> torch.Tensor:  # fmt: skip
    """eps_theta of the wide picture, [B, C, h, 2 w]; its gradient goes through the decoder alone, where the residuals
    enter.

    latents, noise: [B, C, h, 2 w]. residuals: of the skips, the middle's last.
    """
    unet = base.unet()
    x, sigma = base.noised(latents, noise, timesteps)
    arguments = base.arguments(x, rows)
    if residuals is not None:
        *skips, middle = residuals
        arguments["control"] = {"input": [], "middle": [middle], "output": skips}
    with base._autocast():
        denoised = unet.whole(x, sigma, arguments, private_options({}))
    return (x - denoised) / sigma.view(-1, 1, 1, 1)
