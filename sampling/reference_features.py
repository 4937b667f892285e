"""D_ref of Eq. 7: diffusion features (DIFT) of the reference face at t0, averaged over noises, cached across queue
items."""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..backbone.attention import install_recorders
from ..backbone.private import PrivatePass
from ..guidance.omniportrait import mask as region
from ..guidance.omniportrait.settings import Settings
from ..models.faces import FaceReference
from .passes import halved
from .record import IdentityRecord

CACHE_PEOPLE = 2
CACHE_BYTES = 512 * 2**20
_cache: OrderedDict[Key, ReferenceFeatures] = OrderedDict()


@dataclass(frozen=True, eq=False)
class ReferenceFeatures:
    """features: [C, h, w] float32 on the CPU, mean over the noises. mask: boolean [h, w], M_ref at the features'
    size."""

    features: torch.Tensor
    mask: torch.Tensor

    def rows(self, device: torch.device) -> torch.Tensor:
        """[N, C] features inside the face."""
        return self.features.permute(1, 2, 0)[self.mask].to(device)


@dataclass(frozen=True)
class Key:
    """person: everything else that the features depend on (`person_key`). sigma: to which the reference is noised."""

    person: tuple
    sigma: float


def cached(key: Key) -> ReferenceFeatures | None:
    """The features made for this key in this or an earlier run, if still held."""
    if key in _cache:
        _cache.move_to_end(key)
    return _cache.get(key)


def remember(key: Key, value: ReferenceFeatures) -> None:
    """Hold the two newest people, a double portrait's; noised to each step of a run (`matched`), as many as fit."""
    _cache[key] = value
    while len({known.person for known in _cache}) > CACHE_PEOPLE or held_bytes() > CACHE_BYTES:
        _cache.popitem(last=False)


def held_bytes() -> int:
    """Size of the cache."""
    return sum(value.features.nbytes for value in _cache.values())


def forget_all() -> None:
    """Empty the cache."""
    _cache.clear()


def person_key(
    model_patcher: object,
    vae: object,
    face: FaceReference,
    conditioning: list,
    token: int | None,
    block: int,
    side: int,
    s: Settings,
) -> tuple:
    """Everything that the reference features depend on but their noise, by content; models by weak reference, so that
    none is kept alive."""
    context = hashlib.sha256()
    for tensor, options in conditioning:
        for part in (tensor, options.get("pooled_output")):
            if part is not None:
                context.update(part.detach().float().cpu().contiguous().numpy().tobytes())
    base = model_patcher.model
    sampling = model_patcher.get_model_object("model_sampling")  # a patch on it leaves patches_uuid as it is
    prediction = tuple(kind.__name__ for kind in type(sampling).__mro__)
    hyper = (s.ensemble, s.reference_seed, s.alpha, s.beta, s.gamma, s.refinement)
    kind = (block, s.second_block, s.guided_pass == "half")
    return (
        weakref.ref(base),
        model_patcher.patches_uuid,
        base.get_dtype(),
        weakref.ref(vae.first_stage_model),
        face.key,
        context.hexdigest(),
        token,
        kind,
        side,
        prediction,
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
    latent: torch.Tensor,
    sigma: float,
    face: FaceReference,
    arguments: dict,
    record: IdentityRecord | None,
    settings: Settings,
    plain_options: dict,
    plain_attention: object,
) -> ReferenceFeatures:
    """Noise the latent to sigma (Eq. 7: t0's) with `ensemble` fixed noises, average the features (and, if asked, the
    attention) of the passes.

    latent: [1, C, h, w] on the model's device, before process_latent_in. Call outside inference mode.
    Raises: ValueError when the face mask is empty.
    """
    base = private.base
    latent = base.process_latent_in(latent.clone()).float()
    sampling = base.model_sampling
    sigmas = torch.full((1,), sigma, device=latent.device)
    features, maps = 0.0, 0.0
    with torch.no_grad():
        for i in range(settings.ensemble):
            generator = torch.Generator().manual_seed(settings.reference_seed + i)
            noise = torch.randn(latent.shape, generator=generator).to(latent)
            options = dict(plain_options)
            call = sampling.noise_scaling(sigmas.view(-1, 1, 1, 1), noise, latent.clone()), sigmas, arguments
            if settings.guided_pass == "half":
                call = halved(*call)
            recording = None
            if face.mask is None:
                recording = install_recorders(options, private.sites(tuple(call[0].shape[-2:])), plain_attention)
            features = features + private.features(*call, options).float() / settings.ensemble
            if recording is not None and record is not None:
                token_map = recording.token_map(record.reference_token_index, arguments["c_crossattn"].shape[1])
                s = settings
                maps = maps + region.refine(token_map, recording.smooth, s.alpha, s.gamma, s.refinement)
    size = tuple(features.shape[-2:])
    if face.mask is not None:
        mask = region.cover(face.mask.cpu(), size)[0]
    elif record is not None:
        mask = region.resize_mask(region.threshold(region.min_max(maps.cpu()), settings.beta), size)[0]
    else:
        mask = torch.ones(size, dtype=torch.bool)
    if not mask.any():
        raise ValueError(
            "The reference's face mask is empty at the model's resolution; connect a mask to Face Reference, lower "
            "its crop "
            "factor, or choose another mask source."
        )
    return ReferenceFeatures(features[0].cpu(), mask)
