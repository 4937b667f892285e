"""The gradient of one call: Eq. 7 to 10 for each person of each conditioning, kept inside their own mask (Eq. 9).

What is OmniPortrait's own here is `add_people`. Another method that guides by an energy would give its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from ..backbone.memory import upload
from ..guidance.omniportrait.guide import energy, masked
from ..guidance.omniportrait.mask import resize_mask
from ..guidance.omniportrait.match import most_alike, similarity
from ..guidance.omniportrait.settings import Settings
from .conditionings import Carrier
from .reference import Reference
from .rows import Rows, face_maps, failure

NOT_SAMPLED = "the noise mask lets nothing of the face be sampled"
NO_LATENT = "the VAE makes NaN of the reference face (start ComfyUI with --fp32-vae)"


@dataclass(frozen=True, eq=False)
class CallGradient:
    """gradient: dE/dz_t [B, C, H, W] of one call before gain and cap, the sum over all people, float32.

    mask, found: boolean [B, 1, H, W], CPU, where it guides, and where a face was found. inside: float, on the device,
    the face, also where all the picture is guided. finite: boolean [B]. similarities: a picture's number and its mean S
    of Eq. 8, for each person guided there. reasons: a picture's number, and why it was left unguided for a person;
    without a number it is every picture's. present: which of the people's conditionings applied. sampled: boolean
    [B, 1, H, W], CPU, where the sampler samples; None: everywhere.
    """

    gradient: torch.Tensor
    mask: torch.Tensor
    found: torch.Tensor
    inside: torch.Tensor | None = None
    finite: torch.Tensor | None = None
    similarities: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    reasons: list[tuple[int | None, str]] = field(default_factory=list)
    present: list[bool] = field(default_factory=list)
    sampled: torch.Tensor | None = None

    @classmethod
    def nothing(cls, x: torch.Tensor, present: list[bool], sampled: torch.Tensor | None = None) -> CallGradient:
        """For a latent [B, C, H, W], before anybody's rows are added. Masks live on the CPU, where parts are
        labelled."""
        mask = torch.zeros(x[:, :1].shape, dtype=torch.bool)
        return cls(torch.zeros_like(x), mask, mask.clone(), present=present, sampled=sampled)

    @property
    def guided(self) -> set[int]:
        """Pictures in which somebody was guided."""
        return {number for number, _ in self.similarities}

    @property
    def complete(self) -> bool:
        """Whether somebody was guided in every picture."""
        return len(self.guided) == len(self.mask)

    @property
    def empty(self) -> bool:
        """Whether everybody was looked for in every picture and nobody found."""
        looked = bool(self.reasons) and all(number is not None for number, _ in self.reasons) and all(self.present)
        return looked and not self.found.any()

    def finished(self) -> CallGradient:
        """The same without NaN: zeros for pictures whose gradient is not finite."""
        gradient, finite = finite_pictures(self.gradient)
        inside = upload((self.mask & self.found).float(), gradient.device)
        return replace(self, gradient=gradient, finite=finite, inside=inside)

    def keeping(self, held: CallGradient) -> CallGradient:
        """The same, but for the pictures that `held` guides: those keep it, so that no picture of a batch depends on
        whether the others' faces were found."""
        old = held.guided
        kept = torch.tensor([number in old for number in range(len(self.mask))]).view(-1, 1, 1, 1)
        on_device = upload(kept, self.gradient.device)
        return replace(
            self,
            gradient=torch.where(on_device, held.gradient, self.gradient),
            inside=torch.where(on_device, held.inside, self.inside),
            finite=torch.where(on_device.flatten(), held.finite, self.finite),
            mask=torch.where(kept, held.mask, self.mask),
            found=torch.where(kept, held.found, self.found),
            similarities=_of(held.similarities, old) + _of(self.similarities, set(range(len(kept))) - old),
            reasons=_of(held.reasons, old) + _of(self.reasons, {None, *range(len(kept))} - old),
        )


def _of(numbered: list[tuple], numbers: set) -> list[tuple]:
    return [each for each in numbered if each[0] in numbers]


def finite_pictures(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, C, H, W] with zeros for each picture that is not finite everywhere, and [B] which are."""
    finite = values.isfinite().flatten(1).all(dim=1)
    return torch.where(finite.view(-1, 1, 1, 1), values, 0.0), finite


def add_people(
    total: CallGradient,
    carrier: Carrier,
    rows: Rows,
    references: list[Reference],
    c_in: torch.Tensor,
    settings: Settings,
) -> None:
    """Add the people of one conditioning, weighted as ComfyUI weights its rows' prediction.

    references: of each person; of several photographs the most alike counts. c_in:
    [B, 1, 1, 1], what ComfyUI multiplies x by before the network, so that the gradient is that of z_t.
    """
    _, masks = face_maps(rows, carrier.people, settings, [reference.height for reference in references])
    latent_size, feature_size = tuple(rows.x.shape[-2:]), tuple(rows.features.shape[-2:])
    everywhere = not settings.background_masking
    rows.window(total.found).logical_or_(resize_mask(masks.any(dim=0), latent_size)[:, None])
    gradient = torch.zeros_like(rows.x)
    for k, (person, (photographs, _)) in enumerate(zip(carrier.people, references, strict=True)):
        if not photographs:
            total.reasons.extend((b, NO_LATENT) for b in range(len(rows.x)))
            continue
        at_latent = (resize_mask(masks[k], latent_size) | everywhere)[:, None].clone()
        reached = at_latent if total.sampled is None else at_latent & rows.window(total.sampled)
        reasons = {b: NOT_SAMPLED for b, each in enumerate(reached) if not each.any()}
        reasons |= {b: reason for b, mask in enumerate(masks[k]) if (reason := failure(mask, person, rows))}
        total.reasons.extend(reasons.items())
        usable = [b for b in range(len(rows.x)) if b not in reasons]
        if not usable:
            continue
        at_features = resize_mask(masks[k], feature_size) | everywhere
        leaf = rows.features.detach().float().requires_grad_(True)
        energies = []
        for b in usable:
            points = _points(leaf[b], at_features[b])
            reference, match = most_alike(photographs, points.detach())
            energies.append(energy(similarity(reference, points, match, settings.reduction), settings.p))
            total.similarities.append((b, similarity(reference, points.detach(), match, "mean")))
        at_h = torch.autograd.grad(torch.stack(energies).sum(), leaf)[0]
        at_z = _at_input(rows, at_h, keep_graph=k + 1 < len(references)) / c_in
        at_latent[list(reasons)] = False
        gradient.add_(masked(at_z, upload(at_latent, rows.x.device)))
        rows.window(total.mask).logical_or_(at_latent)
    rows.paste(gradient * rows.window(carrier.share), total.gradient)


def _points(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[N, C] of features [C, h, w] inside a mask [h, w], which is on the CPU: there its points are counted, so that no
    GPU is waited for."""
    inside = upload(mask.flatten().nonzero()[:, 0], features.device)
    return features.flatten(1).T.index_select(0, inside)


def _at_input(rows: Rows, at_h: torch.Tensor, keep_graph: bool) -> torch.Tensor:
    """dE/dx of the rows' input, float32 [B, C, h, w], by the network's way back from dE/dh.

    dE/dh goes in scaled to 1, because half precision would flush it to zero (cosine 0.69 to the true gradient instead
    of 0.999996).
    """
    scale = at_h.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-30)
    with rows.guard():
        scaled = (at_h / scale).to(rows.features.dtype)
        at_x = torch.autograd.grad(rows.features, rows.x, scaled, retain_graph=keep_graph)[0]
    return at_x.float() * scale
