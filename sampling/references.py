"""The reference features of one run's people: encoded before sampling, made at the first guided step, kept for the
next run."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..backbone.clock import sigma_of
from ..backbone.private import PrivatePass
from ..guidance.omniportrait.settings import Settings
from . import reference_features as features
from .people import Person
from .reference_features import Key, ReferenceFeatures
from .rows import plain_attention, private_options


class References:
    """What Eq. 7 compares with, by person and (`matched`) by noise level. Made before ComfyUI loads the model.

    Raises: ValueError when the VAE does not belong to the model.
    """

    def __init__(
        self,
        people: Iterable[Person],
        patcher: object,
        vae: object,
        block: int,
        settings: Settings,
        noise: torch.Tensor,
    ) -> None:
        self.settings = settings
        self._t0_sigma = sigma_of(patcher.get_model_object("model_sampling"), settings.t0)
        self._made: dict[Key, ReferenceFeatures] = {}
        self._rows: dict[Person, tuple[Key, torch.Tensor]] = {}
        self._latents: dict[tuple, torch.Tensor] = {}
        self._keys: dict[Person, tuple] = {}
        side = max(min(noise.shape[-2:]) // 8 * 8, 8)
        for person in set(people):
            key = self._keys[person] = features.person_key(
                patcher, vae, person.face, person.conditioning, person.token, block, side, settings
            )
            if person.hooks is not None:
                key = self._keys[person] = (*key, id(person.hooks))  # other weights; the run keeps the object alive
            known = None if self._matched else features.cached(Key(key, self._t0_sigma))
            if known is not None:
                self._made[Key(key, self._t0_sigma)] = known
            elif key not in self._latents:
                self._latents[key] = encode(vae, person, side, noise.shape[1])

    @property
    def _matched(self) -> bool:
        return self.settings.reference_noise == "matched"

    def rows(
        self, private: PrivatePass, base: torch.nn.Module, person: Person, sigma: float, device: torch.device
    ) -> torch.Tensor | None:
        """[N, C] features inside the reference's face, made at the first guided step (`matched`: at each) or taken from
        the cache; None where the VAE made no finite latent of it."""
        key = Key(self._keys[person], sigma if self._matched else self._t0_sigma)
        if key not in self._made:
            latent = self._latents[key.person]
            if not latent.isfinite().all():
                return None
            latent = latent.clone().to(device)  # kept: memory may run out below, and be tried again
            made = features.cached(key) or features.compute(
                private,
                latent,
                key.sigma,
                person.face,
                features.reference_arguments(base, person.conditioning, latent),
                person.record,
                self.settings,
                private_options({}),
                plain_attention,
            )
            if made.features.isfinite().all():
                features.remember(key, made)
            if self._matched:  # no more than the step at hand: the cache has its own bound
                self._made = {known: value for known, value in self._made.items() if known.person != key.person}
            self._made[key] = made
        if self._rows.get(person, (None,))[0] != key:
            self._rows[person] = key, self._made[key].rows(device)
        return self._rows[person][1]


def encode(vae: object, person: Person, side: int, channels: int) -> torch.Tensor:
    """[1, C, side, side] latent of the face. Before sampling: loading the VAE in the middle of it could push the UNet
    out of memory."""
    latent = features.encode_reference(vae, person.face, side * 8)
    if latent.shape[1] != channels:
        raise ValueError(
            f"This VAE makes latents of {latent.shape[1]} channels but the model samples {channels}; connect the VAE "
            "that belongs to the model's checkpoint."
        )
    return latent
