"""What a reference face gives to self-attention: one call of the model for each photograph at each sigma, cached
across queue items."""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Iterable

import torch

from ..backbone.attention import BlockKey, private_options, record_attention
from ..backbone.family import LATENT_SCALE, family_of
from ..guidance.omniportrait.mask import known_height
from ..guidance.reference_attention.attend import tokens_inside
from ..guidance.reference_attention.settings import COUNTS, Settings
from ..models.faces import FaceReference
from .own_face import sites_of
from .people import Person
from .reference import CELLS, call_key, call_options, encode_reference, reference_arguments
from .reference_head import head_mask, person_map

CACHE_BYTES = 512 * 2**20
Tokens = dict[BlockKey, torch.Tensor]
"""[1, M, C] of the face in one photograph at each block, as they enter self-attention."""
_cache: OrderedDict[tuple, Tokens] = OrderedDict()


class _Enough(Exception):
    """All tokens of a reference have been read, and the rest of the call is not needed."""


def forget_all() -> None:
    """Empty the cache."""
    _cache.clear()


class ReferenceTokens:
    """The tokens of a run's people. Made before ComfyUI loads the model.

    blocks: where they are read and appended. lost: of how many of a person's photographs the VAE made no finite latent.
    Raises: ValueError when the VAE does not belong to the model.
    """

    def __init__(
        self, people: Iterable[Person], patcher: object, vae: object, settings: Settings, noise: torch.Tensor
    ) -> None:
        family = family_of(patcher)
        blocks = family.self_attention(COUNTS[settings.levels])
        self.blocks = tuple(key for key in blocks if key[0] != "middle")  # perturbed attention's, which goes by block
        self.lost: Counter[Person] = Counter()
        self._seed = settings.seed
        self._latents: dict[str, torch.Tensor] = {}
        self._keys: dict[Person, dict[tuple, FaceReference]] = {}
        self._heights: dict[Person, float] = {}
        cells = max(min(noise.shape[-2:]) // CELLS * CELLS, CELLS)
        self._sites = sites_of(family, (cells, cells))
        self._head_sites = family.sites(family.last_block, (cells, cells))
        for person in people:
            self._keys[person] = {}
            for face in person.face.photographs:
                if face.photo_key not in self._latents:
                    self._latents[face.photo_key] = encode_reference(vae, face, cells * LATENT_SCALE, noise.shape[1])
                if self._latents[face.photo_key].isfinite().all():
                    key = (*call_key(patcher, vae, person, face, cells), person.token, self.blocks, settings.seed)
                    self._keys[person][key] = face
                else:
                    self.lost[person] += 1

    def at(self, base: torch.nn.Module, person: Person, sigma: torch.Tensor) -> list[Tokens | None]:
        """The tokens of each photograph of a person at a sigma [1], on its device: computed once, then taken from the
        cache. The weights in place have to be those of the person's conditioning. None where they are not finite."""
        return [self._one(base, person, key, sigma) for key in self._keys[person]]

    def height(self, base: torch.nn.Module, person: Person, sigma: torch.Tensor) -> float:
        """How high the person's word rises in the attention on the own photographs at a sigma [1], their mean
        (mask.known_height). One call for each, once a run; the weights in place as for `at`."""
        if person not in self._heights:
            with torch.inference_mode(False), torch.no_grad():
                found = [self._height(base, person, face, sigma.clone()) for face in self._keys[person].values()]
            self._heights[person] = sum(found) / max(len(found), 1)
        return self._heights[person]

    def _one(self, base: torch.nn.Module, person: Person, photograph: tuple, sigma: torch.Tensor) -> Tokens | None:
        key = (*photograph, float(sigma))
        known = _cache.get(key)
        if known is None:
            with torch.inference_mode(False), torch.no_grad():
                known = self._call(base, person, self._keys[person][photograph], sigma.clone())
            if not all(tokens.isfinite().all() for tokens in known.values()):
                return None
            own = {each for keys in self._keys.values() for each in keys}
            _remember(key, {block: tokens.cpu() for block, tokens in known.items()}, own)
        else:
            _cache.move_to_end(key)
        return {block: tokens.to(sigma.device) for block, tokens in known.items()}

    def _height(self, base: torch.nn.Module, person: Person, face: FaceReference, sigma: torch.Tensor) -> float:
        x, arguments = self._noised(base, person, face, sigma)
        options = private_options(call_options(sigma))
        recording = record_attention(options, self._sites)
        base._apply_model(x, sigma, transformer_options=options, **arguments)
        return float(known_height(recording.spread(person.token, arguments["c_crossattn"].shape[1])))

    def _noised(
        self, base: torch.nn.Module, person: Person, face: FaceReference, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, dict]:
        """A photograph at a sigma, and what the model gets beside it."""
        latent = base.process_latent_in(self._latents[face.photo_key].clone().to(sigma.device)).float()
        arguments = reference_arguments(base, person.conditioning, latent)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(self._seed)).to(latent)
        return base.model_sampling.noise_scaling(sigma.view(-1, 1, 1, 1), noise, latent), arguments

    def _call(self, base: torch.nn.Module, person: Person, face: FaceReference, sigma: torch.Tensor) -> Tokens:
        x, arguments = self._noised(base, person, face, sigma)
        options, everything, grids = call_options(sigma), Tokens(), {}
        recording = None if person.token is None else record_attention(options, self._head_sites)

        def keep(n: torch.Tensor, context: torch.Tensor, value: torch.Tensor, extra: dict) -> tuple:
            block = (*extra["block"], extra["block_index"])
            if block in self.blocks:
                everything[block], grids[block] = n[:1].clone(), tuple(extra["activations_shape"][-2:])
            if block == self.blocks[-1]:
                raise _Enough
            return n, context, value

        options["patches"] = {"attn1_patch": [keep]}
        with contextlib.suppress(_Enough):
            base._apply_model(x, sigma, transformer_options=options, **arguments)
        head = head_mask(face, recording and person_map(recording, person.token, arguments["c_crossattn"].shape[1]))
        return {
            block: tokens[:, tokens_inside(head, grids[block])[0].to(tokens.device)]
            for block, tokens in everything.items()
        }


def _remember(key: tuple, tokens: Tokens, own: set[tuple]) -> None:
    """Hold as many as fit, on the CPU. Others make room; the run's `own` photographs do not, or a run too long for the
    cache would find nothing of what it stored."""
    size = sum(each.nbytes for each in tokens.values())
    others = [known for known in _cache if known[:-1] not in own]
    while others and held_bytes() + size > CACHE_BYTES:
        del _cache[others.pop(0)]
    if held_bytes() + size <= CACHE_BYTES:
        _cache[key] = tokens


def held_bytes() -> int:
    """Size of the cache."""
    return sum(each.nbytes for held in _cache.values() for each in held.values())
