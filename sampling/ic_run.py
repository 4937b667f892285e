"""One sampling run of IC-Portrait: the latents of both pictures, the flow between them, and the UNet's wide call."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..backbone.family import LATENT_SCALE
from ..guidance.ic_portrait import flow as matching
from ..guidance.ic_portrait.aggregate import aggregated
from ..guidance.ic_portrait.masking import halves, joined, kept
from ..guidance.ic_portrait.settings import Settings
from ..models.faces import FaceReference
from ..models.faces.geometry import similarity
from ..models.ic.handle import ICHandle
from .reference import encode_picture

MATCHED_AT = 100.0
"""The timestep that the matching net is told: the flow hangs on the condition and hardly on the time, so one flow
serves the run."""
Control = dict[str, list[torch.Tensor | None]]
"""ComfyUI's residuals by name; the UNet takes each list's last one first."""


class Run:
    """Made in OUTER_SAMPLE before ComfyUI loads the model; dropped when sampling ends.

    seen: what the nets see, the profile beside the masked style picture, [1, 3, S, 2 S] in 0..1. flow: [1, h, w, 2],
    once it is known; trusted: boolean [1, h, w], where the matching net found it. calls: of the wide UNet.
    """

    def __init__(
        self,
        patcher: object,
        vae: object,
        handle: ICHandle,
        profile: FaceReference,
        style: FaceReference,
        settings: Settings,
        noise: torch.Tensor,
    ) -> None:
        self._settings, self._handle = settings, handle
        self._sampling = patcher.get_model_object("model_sampling")
        self._window = [self._sampling.percent_to_sigma(p) for p in (settings.end_percent, settings.start_percent)]
        self._canvas, channels = tuple(noise.shape[-2:]), noise.shape[1]
        random = torch.Generator().manual_seed(settings.seed)
        side = LATENT_SCALE * self._canvas[0]
        pictures = sized(profile.crop, side), kept(sized(style.crop, side), settings.light, random)
        self.seen = joined(*pictures)
        latents = [encoded(vae, picture, channels) for picture in pictures]
        self._profile, self._masked = (patcher.model.process_latent_in(each).float() for each in latents)
        self._noise = torch.randn(self._profile.shape, generator=random)
        self._prior = by_landmarks(profile, style, self._canvas)
        self._face = inside_face(style, self._canvas)
        self._flows: list[torch.Tensor | None] | None = None
        self.flow: torch.Tensor | None = None
        self.trusted: torch.Tensor | None = None
        self.calls = 0

    def __deepcopy__(self, memo: dict) -> Run:
        """Older cores deep-copy model_options; a run is one and stays one."""
        return self

    def acts(self, sigma: float) -> bool:
        """Whether a sigma lies in the window."""
        low, high = self._window
        return low <= sigma <= high

    def widened(
        self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, control: Control | None, options: dict
    ) -> tuple[torch.Tensor, Control]:
        """The input of the UNet's call, [B, C, h, 2 w], and its residuals, of those of a narrow call."""
        if tuple(x.shape[-2:]) != self._canvas or x.shape[1] != self._profile.shape[1]:
            raise ValueError(
                "IC-Portrait joins the whole picture with the profile, but the model was called on a part of it, or "
                "with more channels; remove area conditionings and nodes that sample in tiles, and use no inpainting "
                "model (masks are fine)."
            )
        self.calls += 1
        sigma = options["sigmas"][:1].to(x.device)
        noisy = self._sampling.noise_scaling(
            sigma.view(-1, 1, 1, 1), self._noise.to(x.device), self._profile.to(x.device).clone()
        )
        profile = self._sampling.calculate_input(sigma, noisy).to(x).expand(len(x), -1, -1, -1)
        if self._flows is None:
            first = positive_row(options, len(x))
            self.find(context[first : first + 1].to(x))
        own = self.residuals(timesteps, context, x)
        return joined(profile, x), merged(padded(control, x.shape[-1]), own)

    def residuals(self, timesteps: torch.Tensor, context: torch.Tensor, x: torch.Tensor) -> Control:
        """What the nets add to the UNet's skips and middle, for each row of x [B, C, h, w], once the flow is found."""
        condition = joined(self._profile, self._masked).to(x)
        net = self._handle.appearance.model
        features = net(condition.expand(len(x), -1, -1, -1), timesteps, context, {})
        flows = [flow if flow is None else flow.expand(len(x), -1, -1, -1) for flow in self._flows]
        added = net.residuals(aggregated(features, flows, self._settings.alpha, self._settings.beta))
        *skips, middle = (self._settings.strength * each for each in added)
        return {"input": [], "middle": [middle], "output": skips}

    # The flow, once a run

    def find(self, context: torch.Tensor) -> None:
        """The flow, of the text [1, T, D] that the matching net reads, on its device and in its kind."""
        self._flows = self._matched(joined(self._profile, self._masked).to(context), context)

    def _matched(self, condition: torch.Tensor, context: torch.Tensor) -> list[torch.Tensor | None]:
        """One flow a level."""
        levels, source = len(self._handle.header.shape.widths), self._settings.flow
        if source == "none":
            return [None] * levels
        if source == "landmarks":
            self.flow = self._prior.to(condition.device)
            return [self.flow] * levels
        time = torch.full((1,), MATCHED_AT, device=condition.device)
        features = self._handle.matching.model(condition, time, context, {})
        if source == "shared":
            self.flow, self.trusted = self._match(features[self._handle.header.match_level])
            return [self.flow] * levels
        flows = [self._match(each) for each in features]
        self.flow, self.trusted = flows[self._handle.header.match_level]
        return [flow for flow, _ in flows]

    def _match(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Eq. 4 to 6 at one level: the flow, near the landmarks' where there are any, and where it was found.
        Elsewhere, and outside the face, is the prior."""
        profile, lit = halves(features)
        size = tuple(lit.shape[-2:])
        cost = matching.cost_volume(profile, lit)
        face = F.interpolate(self._face[:, None].float(), size, mode="area")[:, 0].to(cost.device)
        near = None if self._prior is None else matching.resized(self._prior.to(cost.device), size)
        prior = matching.own_places(*size, cost.device)[None] if near is None else near
        share = float(self._face.any(1).float().mean())
        trusted = matching.trusted(cost, size, share) & (face > 0.5)
        return torch.where(trusted[..., None], matching.match(cost, size, near), prior), trusted


def positive_row(options: dict, rows: int) -> int:
    """The first row of a call that is the prompt's and not the negative's; the first of all where none is."""
    kinds = options.get("cond_or_uncond") or [0]
    return (kinds.index(0) if 0 in kinds else 0) * (rows // len(kinds))


def sized(crop: torch.Tensor, side: int) -> torch.Tensor:
    """[1, 3, side, side] in 0..1 of a crop [1, S, S, 3]."""
    picture = crop.movedim(-1, 1).float()
    return F.interpolate(picture, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def encoded(vae: object, picture: torch.Tensor, channels: int) -> torch.Tensor:
    """The VAE's latent of a picture [1, 3, S, S]. Raises: ValueError for another model's VAE, and for NaN."""
    latent = encode_picture(vae, picture, channels)
    if not latent.isfinite().all():
        raise ValueError("The VAE makes NaN of a picture of IC-Portrait; start ComfyUI with --fp32-vae.")
    return latent.clone()


def by_landmarks(profile: FaceReference, style: FaceReference, size: tuple[int, int]) -> torch.Tensor | None:
    """The flow [1, h, w, 2] of the similarity between the five landmarks of both faces; None where one has none."""
    if profile.landmarks is None or style.landmarks is None:
        return None
    places = [torch.tensor(face.landmarks)[None] / face.crop.shape[1] for face in (style, profile)]
    return matching.affine(similarity(*places), size)


def inside_face(face: FaceReference, size: tuple[int, int]) -> torch.Tensor:
    """Boolean [1, h, w]: cells inside the face's box; all of them where there is none."""
    if face.face_box is None:
        return torch.ones(1, *size, dtype=torch.bool)
    x0, y0, x1, y1 = (value / face.crop.shape[1] for value in face.face_box)
    x, y = matching.own_places(*size).unbind(-1)
    return ((x > x0) & (x < x1) & (y > y0) & (y < y1))[None]


def padded(control: Control | None, width: int) -> Control:
    """Other ControlNets' residuals, made for the narrow picture: they add nothing to the profile's half. Without this
    ComfyUI would notice the other size, leave them out and go on."""
    return {
        name: [each if each is None else F.pad(each, (each.shape[-1], 0)) for each in parts]
        for name, parts in (control or {}).items()
    }


def merged(control: Control, own: Control) -> Control:
    """Both, aligned at the end that the UNet begins with. New lists: the UNet empties them."""
    result = {name: list(parts) for name, parts in control.items()}
    for name, parts in own.items():
        others = result.get(name, [])
        missing = max(len(others) - len(parts), 0), max(len(parts) - len(others), 0)
        pairs = zip([None] * missing[0] + parts, [None] * missing[1] + others, strict=True)
        result[name] = [b if a is None else a if b is None else a + b.to(a) for a, b in pairs]
    return result
