"""D_ref of Eq. 7: diffusion features (DIFT) of the reference face at t0, averaged over noises, cached across queue
items."""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..models.face import FaceReference
from . import region
from .attention import AttentionSites, install_recorders
from .identity import IdentityRecord
from .private_pass import PrivatePass
from .schedule import sigma_of
from .settings import Settings

CACHE_SIZE = 2
_cache: OrderedDict[tuple, ReferenceFeatures] = OrderedDict()


@dataclass(frozen=True, eq=False)
class ReferenceFeatures:
    """features: [C, h, w] float32 on the CPU, mean over the noises. mask: boolean [h, w], M_ref at the features'
    size."""

    features: torch.Tensor
    mask: torch.Tensor

    def rows(self, device: torch.device) -> torch.Tensor:
        """[N, C] features inside the face."""
        return self.features.permute(1, 2, 0)[self.mask].to(device)


def cached(key: tuple) -> ReferenceFeatures | None:
    """The features made for this key in this or an earlier run, if still held."""
    if key in _cache:
        _cache.move_to_end(key)
    return _cache.get(key)


def remember(key: tuple, value: ReferenceFeatures) -> None:
    """Hold the two newest: a person, or the two of a double portrait."""
    _cache[key] = value
    while len(_cache) > CACHE_SIZE:
        _cache.popitem(last=False)


def forget_all() -> None:
    """Empty the cache."""
    _cache.clear()


def cache_key(
    model_patcher: object,
    vae: object,
    face: FaceReference,
    conditioning: list,
    token: int | None,
    block: int,
    side: int,
    s: Settings,
) -> tuple:
    """Everything that the reference features depend on, by content; models by weak reference, so that none is kept
    alive."""
    context = hashlib.sha256()
    for tensor, options in conditioning:
        for part in (tensor, options.get("pooled_output")):
            if part is not None:
                context.update(part.detach().float().cpu().contiguous().numpy().tobytes())
    base = model_patcher.model
    sampling = model_patcher.get_model_object("model_sampling")  # a patch on it leaves patches_uuid as it is
    prediction = tuple(kind.__name__ for kind in type(sampling).__mro__)
    hyper = (s.t0, s.ensemble, s.reference_seed, s.alpha, s.beta, s.gamma, s.refinement)
    return (
        weakref.ref(base),
        model_patcher.patches_uuid,
        base.get_dtype(),
        weakref.ref(vae.first_stage_model),
        face.key,
        context.hexdigest(),
        token,
        block,
        side,
        prediction,
        sigma_of(sampling, s.t0),
        hyper,
    )


def encode_reference(vae: object, face: FaceReference, side: int) -> torch.Tensor:
    """[1, C, side/8, side/8] latent of the crop, resized to `side` pixels so that faces of both pictures are of like
    size."""
    pixels = F.interpolate(
        face.crop.movedim(-1, 1), size=(side, side), mode="bicubic", antialias=True, align_corners=False
    )
    return vae.encode(pixels.clamp(0, 1).movedim(1, -1))


def reference_arguments(base: torch.nn.Module, conditioning: list, latent: torch.Tensor) -> dict:
    """What apply_model gets for the reference prompt, made by ComfyUI itself (SDXL's pooled text and sizes, for
    one)."""
    import comfy.sampler_helpers
    import comfy.samplers

    conds = comfy.sampler_helpers.convert_cond(conditioning[:1])
    conds = comfy.samplers.encode_model_conds(base.extra_conds, conds, latent, latent.device, "positive")
    return {name: cond.process_cond(batch_size=1, area=None).cond for name, cond in conds[0]["model_conds"].items()}


def compute(
    private: PrivatePass,
    sites: AttentionSites,
    latent: torch.Tensor,
    face: FaceReference,
    arguments: dict,
    record: IdentityRecord | None,
    settings: Settings,
    plain_options: dict,
    plain_attention: object,
) -> ReferenceFeatures:
    """Noise the latent to t0 with `ensemble` fixed noises, average the features (and, if asked, the attention) of the
    passes.

    latent: [1, C, h, w] on the model's device, before process_latent_in. Call outside inference mode.
    Raises: ValueError when the face mask is empty.
    """
    base = private.base
    latent = base.process_latent_in(latent.clone()).float()
    sampling = base.model_sampling
    sigma = torch.full((1,), sigma_of(sampling, settings.t0), device=latent.device)
    features, maps = 0.0, 0.0
    with torch.no_grad():
        for i in range(settings.ensemble):
            generator = torch.Generator().manual_seed(settings.reference_seed + i)
            noise = torch.randn(latent.shape, generator=generator).to(latent)
            options = dict(plain_options)
            recording = install_recorders(options, sites, plain_attention) if face.mask is None else None
            noised = sampling.noise_scaling(sigma.view(-1, 1, 1, 1), noise, latent.clone())
            features = features + private.features(noised, sigma, arguments, options).float() / settings.ensemble
            if recording is not None and record is not None:
                token_map = recording.token_map(record.reference_token_index, arguments["c_crossattn"].shape[1])
                s = settings
                maps = maps + region.refine(token_map, recording.smooth, s.alpha, s.gamma, s.refinement)
    size = tuple(features.shape[-2:])
    if face.mask is not None:
        mask = region.cover(face.mask.to(latent.device), size)[0]
    elif record is not None:
        mask = region.resize_mask(region.threshold(region.min_max(maps), settings.beta), size)[0]
    else:
        mask = torch.ones(size, dtype=torch.bool, device=latent.device)
    if not mask.any():
        raise ValueError(
            "The reference's face mask is empty at the model's resolution; connect a mask to Face Reference, lower "
            "its crop "
            "factor, or choose another mask source."
        )
    return ReferenceFeatures(features[0].cpu(), mask.cpu())
