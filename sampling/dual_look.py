"""SPF-Portrait's control map of a latent: the original model on the base text and the tuned one on the complete text,
at a few noise levels, through ComfyUI's own sampling.

Both models are clones of one with other patches, so the two runs come one after the other and never mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..backbone.attention import AttentionSites, BlockKey, Recording, record_attention
from ..backbone.family import family_of
from ..guidance.spf_portrait.control_map import difference, fine_control
from ..guidance.spf_portrait.settings import ControlMap
from .phrases import Columns, columns_of, complete_text, phrases_of
from .recorder import uninstall
from .single_call import check_latent, sigma_at
from .words import escaped

SPREAD = 0.1
"""Share of the sampling between two looks."""


@dataclass(frozen=True, eq=False)
class Look:
    """One model at one sigma, on the CPU. noise: eps [B, C, h, w]. attention: [B, h', w', columns]."""

    noise: torch.Tensor
    attention: torch.Tensor


@dataclass(frozen=True, eq=False)
class FineControl:
    """Means over the looks. noise: N [B, h, w]. maps: M_p [B, P, h, w]. distances: D_p [P]. control: S [B, h, w].
    phrases: their words."""

    noise: torch.Tensor
    maps: torch.Tensor
    distances: torch.Tensor
    control: torch.Tensor
    phrases: tuple[str, ...]


def fine_control_map(
    model: object,
    tuned: object,
    clip: object,
    base: str,
    target: str,
    latent: torch.Tensor,
    seed: int,
    sigmas: Sequence[float],
    settings: ControlMap,
    phrases: Sequence[str] = (),
) -> FineControl:
    """Eq. 7 to 9 of a latent [B, C, h, w], noised to each of the sigmas with the seed's noise.

    phrases: of the base text; none: found by their words. Raises: ValueError, a sentence for the user, for models of
    other families, a tuned model of another checkpoint, texts without words or too long, a phrase that is not in the
    base text, and a latent of another model.
    """
    settings.check()
    family, _ = family_of(model), family_of(tuned)
    _check(model, tuned)
    check_latent(model, latent)
    columns = columns_of(clip, base, target, phrases or phrases_of(base))
    if missing := set(phrases) - set(columns.names):
        named = ", ".join(sorted(missing))
        raise ValueError(f"The base text does not hold the phrase {named}: write each phrase as it stands there.")
    short, long = (
        clip.encode_from_tokens_scheduled(clip.tokenize(escaped(text))) for text in (base, complete_text(base, target))
    )
    keys = family.sites(family.feature_block(-1), tuple(latent.shape[-2:])).cross
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))  # not the global generator
    reference = _looks(model, short, latent, noise, sigmas, keys)
    response = _looks(tuned, long, latent, noise, sigmas, keys)
    return _combined(reference, response, long[0][0][0].float().cpu(), columns, settings)


def sigmas_around(model: object, percent: float, looks: int) -> list[float]:
    """Sigmas of so many looks around a share of the sampling, 0 to 1, the noisiest first."""
    places = (percent + SPREAD * (number - (looks - 1) / 2) for number in range(looks))
    return [sigma_at(model, min(max(place, 0.0), 1.0)) for place in places]


def _check(model: object, tuned: object) -> None:
    shapes = [(type(each.model.model_config), str(each.model.model_config.unet_config)) for each in (model, tuned)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "The tuned model is of another family than the model: connect the same checkpoint, once as it is and once "
            "through Load LoRA."
        )


def _looks(
    model: object,
    conditioning: list,
    latent: torch.Tensor,
    noise: torch.Tensor,
    sigmas: Sequence[float],
    keys: tuple[BlockKey, ...],
) -> list[Look]:
    """One call of the model at each sigma, its attention recorded on the way."""
    import comfy.samplers

    patched = model.clone()
    uninstall(patched)
    found: list[Look] = []

    class Calls(comfy.samplers.Sampler):
        """Looks, and hands the latent back."""

        def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *_, **__):
            sampling = model_wrap.inner_model.model_sampling
            still = torch.zeros_like(noise) if latent_image is None else latent_image
            for sigma in sigmas:
                x = sampling.noise_scaling(sigma, noise.clone(), still)
                options, recording = _recorded(extra_args["model_options"], keys)
                denoised = model_wrap(x, sigma.expand(len(x)), **(extra_args | {"model_options": options}))
                recording.close()
                # a model that insists on its unconditional rows reads the same text there
                attention = _attention(recording, keys)[: len(x)]
                found.append(Look(((x - denoised) / sigma).float().cpu(), attention))
            return still

    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(conditioning, conditioning)
    guider.set_cfg(1.0)
    guider.sample(noise, latent, Calls(), torch.tensor(sigmas), disable_pbar=True, seed=0)
    return found


def _recorded(options: dict, keys: tuple[BlockKey, ...]) -> tuple[dict, Recording]:
    """The options of one call, with recorders over whatever patches are there; the run's own stay as they are."""
    own = dict(options.get("transformer_options", {}))
    recording = record_attention(own, AttentionSites(cross=keys, self_=()))
    return options | {"transformer_options": own}, recording


def _attention(recording: Recording, keys: tuple[BlockKey, ...]) -> torch.Tensor:
    """[B, h, w, columns]: the mean over layers and heads, on the CPU."""
    maps = recording.text_attention()
    if not maps:
        raise ValueError(
            "The attention layers could not be read, because another node merges or drops their tokens; bypass that "
            "node (token merging, HyperTile)."
        )
    mean = torch.stack([maps[key] for key in keys if key in maps]).mean(0)
    return mean.view(len(mean), *recording.sizes[next(iter(maps))], -1).cpu()


def _combined(
    reference: Sequence[Look],
    response: Sequence[Look],
    states: torch.Tensor,
    columns: Columns,
    settings: ControlMap,
) -> FineControl:
    """Eq. 7 to 9 at each look, then the means."""
    noises, maps, controls, distances = [], [], [], torch.zeros(0)
    spans = columns.phrases, columns.target
    for one, other in zip(reference, response, strict=True):
        noise = difference(other.noise, one.noise, settings.blur, settings.floor)
        attention = zip(one.attention, other.attention, strict=True)
        rows = [fine_control(n, *both, states, *spans, settings) for n, both in zip(noise, attention, strict=True)]
        noises.append(noise)
        controls.append(torch.stack([control for control, _, _ in rows]))
        maps.append(torch.stack([found for _, found, _ in rows]))
        distances = rows[0][2]
    means = (torch.stack(each).mean(0) for each in (noises, maps))
    return FineControl(*means, distances, torch.stack(controls).mean(0), columns.names)
