"""D_ref of Eq. 7: diffusion features (DIFT) of each reference face at t0, averaged over noises, cached across queue
items."""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple
from uuid import uuid4

import torch
import torch.nn.functional as F

from ..backbone.attention import private_options, record_attention
from ..backbone.family import LATENT_SCALE
from ..backbone.private import PrivateTwin
from ..guidance.omniportrait.mask import cover, known_height, min_max, refine, resize_mask, threshold
from ..guidance.omniportrait.settings import Settings
from ..models.faces import FaceReference
from .people import Person

CACHE_FACES = 2
"""A double portrait's; a run with more photographs keeps all of its own."""
CELLS = 8
"""A reference's latent has sides of so many cells or a multiple: networks halve it three times."""
_cache: OrderedDict[tuple, ReferenceFeatures] = OrderedDict()


@dataclass(frozen=True, eq=False)
class ReferenceFeatures:
    """features: [C, h, w] float32 on the CPU, mean over the noises. mask: boolean [h, w], M_ref at the features'
    size. height: of the subject's word in the attention (mask.known_height)."""

    features: torch.Tensor
    mask: torch.Tensor
    height: float = 0.0

    def points(self, device: torch.device) -> torch.Tensor:
        """[N, C] features inside the face."""
        return self.features.permute(1, 2, 0)[self.mask].to(device)


class Reference(NamedTuple):
    """What guidance takes from a person's photographs. points: [N, C] features inside the face, of each.
    height: the photographs' mean (ReferenceFeatures)."""

    points: list[torch.Tensor]
    height: float


class References:
    """D_ref of a run's people: encoded before ComfyUI loads the model, computed at the first guided step.

    Raises: ValueError when the VAE does not belong to the model.
    """

    def __init__(
        self,
        people: Iterable[Person],
        patcher: object,
        vae: object,
        block: int,
        sigma: float,
        settings: Settings,
        noise: torch.Tensor,
    ) -> None:
        self._settings, self._block, self._sigma = settings, block, sigma
        self._keys: dict[Person, dict[tuple, FaceReference]] = {}
        self._latents: dict[tuple, torch.Tensor] = {}
        self._features: dict[tuple, ReferenceFeatures] = {}
        self._references: dict[Person, Reference] = {}
        cells = max(min(noise.shape[-2:]) // CELLS * CELLS, CELLS)
        for person in people:
            self._keys[person] = {
                cache_key(patcher, vae, person, face, block, cells, sigma, settings): face
                for face in person.face.photographs
            }
            for key, face in self._keys[person].items():
                known = cached(key)
                if known is not None:
                    self._features[key] = known
                elif key not in self._latents:
                    self._latents[key] = encode_reference(vae, face, cells * LATENT_SCALE, noise.shape[1])

    def of(self, twin: PrivateTwin, person: Person, device: torch.device) -> Reference:
        """A person's reference, of the photographs of which the VAE made a finite latent."""
        if person not in self._references:
            made = [self._made(twin, person, key, device) for key in self._keys[person]]
            known = [features for features in made if features is not None]
            points = [features.points(device) for features in known]
            height = sum(features.height for features in known) / max(len(known), 1)
            self._references[person] = Reference(points, height)
        return self._references[person]

    def _made(self, twin: PrivateTwin, person: Person, key: tuple, device: torch.device) -> ReferenceFeatures | None:
        if key not in self._features:
            latent = self._latents[key]
            if not latent.isfinite().all():
                return None
            latent = latent.clone().to(device)  # the original is kept: memory may run out below
            face = self._keys[person][key]
            result = cached(key) or compute(twin, self._block, latent, self._sigma, person, face, self._settings)
            if result.features.isfinite().all():
                remember(key, result, sum(map(len, self._keys.values())))
            self._features[key] = result
        return self._features[key]


def cached(key: tuple) -> ReferenceFeatures | None:
    """The features made for this key in this or an earlier run, if still held."""
    if key in _cache:
        _cache.move_to_end(key)
    return _cache.get(key)


def remember(key: tuple, value: ReferenceFeatures, photographs: int = 1) -> None:
    """Hold the newest faces, and at least those of a run with so many photographs."""
    _cache[key] = value
    while len(_cache) > max(CACHE_FACES, photographs):
        _cache.popitem(last=False)


def forget_all() -> None:
    """Empty the cache."""
    _cache.clear()


def cache_key(
    patcher: object,
    vae: object,
    person: Person,
    face: FaceReference,
    block: int,
    cells: int,
    sigma: float,
    settings: Settings,
) -> tuple:
    """Everything that a face's features depend on."""
    s = settings
    hyper = (s.ensemble, s.reference_seed, s.alpha, s.beta, s.gamma, s.refinement)
    return (*call_key(patcher, vae, person, face, cells), person.token, block, sigma, hyper)


def call_key(patcher: object, vae: object, person: Person, face: FaceReference, cells: int) -> tuple:
    """Everything that a model's call on a reference depends on but its noise, by content; models by weak reference, so
    that none is kept alive."""
    context = hashlib.sha256()
    for states, options in person.conditioning:
        for part in (states, options.get("pooled_output")):
            if part is not None:
                context.update(part.detach().float().cpu().contiguous().numpy().tobytes())
    base = patcher.model
    sampling = patcher.get_model_object("model_sampling")  # a patch on it leaves patches_uuid as it is
    return (
        weakref.ref(base),
        patcher.patches_uuid,
        base.get_dtype(),
        weakref.ref(vae.first_stage_model),
        face.photo_key,
        context.hexdigest(),
        cells,
        tuple(kind.__name__ for kind in type(sampling).__mro__),
        None if person.hooks is None else weakref.ref(person.hooks),  # other weights
    )


def check_vae(vae: object, node: str) -> None:
    """Raises: ValueError where the VAE input of a node, called so, holds none."""
    if getattr(vae, "first_stage_model", None) is None:
        raise ValueError(
            f"The vae input of {node} holds no VAE, because the checkpoint has none; connect the one of Load VAE."
        )


def encode_reference(vae: object, face: FaceReference, side: int, channels: int) -> torch.Tensor:
    """[1, C, h, w] latent of the crop, resized to `side` pixels so that faces of both pictures are of
    like size. Called before sampling: loading the VAE in the middle of it could push the UNet out of memory.

    Raises: ValueError when the latent has other channels than the model's.
    """
    pixels = F.interpolate(
        face.crop.movedim(-1, 1), size=(side, side), mode="bicubic", antialias=True, align_corners=False
    )
    return encode_picture(vae, pixels.clamp(0, 1), channels)


def encode_picture(vae: object, picture: torch.Tensor, channels: int) -> torch.Tensor:
    """The VAE's latent of a picture [1, 3, S, S] in 0..1. ValueError when it has other channels than the model's."""
    latent = vae.encode(picture.movedim(1, -1))
    if latent.shape[1] != channels:
        raise ValueError(
            f"This VAE makes latents of {latent.shape[1]} channels but the model samples {channels}; connect the VAE "
            "that belongs to the model's checkpoint."
        )
    return latent


def reference_arguments(base: torch.nn.Module, conditioning: list, latent: torch.Tensor) -> dict:
    """What apply_model gets for the reference prompt, made by ComfyUI itself (SDXL's pooled text and sizes, for
    one)."""
    import comfy.sampler_helpers
    import comfy.samplers

    conds = comfy.sampler_helpers.convert_cond(conditioning[:1])
    conds = comfy.samplers.encode_model_conds(base.extra_conds, conds, latent, latent.device, "positive")
    return {name: cond.process_cond(batch_size=1, area=None).cond for name, cond in conds[0]["model_conds"].items()}


def call_options(sigma: torch.Tensor) -> dict:
    """transformer_options of a call of our own at a sigma [1]: all that ComfyUI gives each call, because blocks of
    other packs read it. A sampling of one step; no conditioning has its uuid."""
    return {
        "sample_sigmas": torch.cat([sigma, sigma.new_zeros(1)]),
        "sigmas": sigma,
        "uuids": [uuid4()],
        "cond_or_uncond": [0],
        "wrappers": {},
        "callbacks": {},
    }


def compute(
    twin: PrivateTwin,
    block: int,
    latent: torch.Tensor,
    sigma: float,
    person: Person,
    face: FaceReference,
    settings: Settings,
) -> ReferenceFeatures:
    """Noise the latent of one of the person's photographs to sigma with `ensemble` fixed noises; average the features
    (and, where the face has no mask, the attention) of the passes.

    latent: [1, C, h, w] on the model's device, before process_latent_in. Call outside inference mode.
    Raises: ValueError when the face mask is empty.
    """
    base, s = twin.base, settings
    arguments = reference_arguments(base, person.conditioning, latent)
    latent = base.process_latent_in(latent.clone()).float()
    sigmas = torch.full((1,), sigma, device=latent.device)
    features, maps, known = 0.0, 0.0, 0.0
    with torch.no_grad():
        for i in range(s.ensemble):
            generator = torch.Generator().manual_seed(s.reference_seed + i)
            noise = torch.randn(latent.shape, generator=generator).to(latent)
            x = base.model_sampling.noise_scaling(sigmas.view(-1, 1, 1, 1), noise, latent.clone())
            options, recording = private_options(call_options(sigmas)), None
            if person.token is not None:
                recording = record_attention(options, twin.family.sites(block, tuple(x.shape[-2:])))
            features = features + twin.tap(block, x, sigmas, arguments, options).features.float() / s.ensemble
            if recording is not None:
                tokens = arguments["c_crossattn"].shape[1]
                known += float(known_height(recording.spread(person.token, tokens))) / s.ensemble
                token_map = recording.token_map(person.token, tokens)
                maps = maps + refine(token_map, recording.smooth, s.alpha, s.gamma, s.refinement)
    size = tuple(features.shape[-2:])
    if face.mask is not None:
        mask = cover(face.mask.cpu(), size)[0]
    elif person.token is not None:
        mask = resize_mask(threshold(min_max(maps.cpu()), s.beta), size)[0]
    else:
        mask = torch.ones(size, dtype=torch.bool)
    if not mask.any():
        raise ValueError(
            "The reference's face mask is empty at the model's resolution; connect a mask to Face Reference, lower "
            "its crop factor, or choose another mask source."
        )
    return ReferenceFeatures(features[0].cpu(), mask, known)
