"""The face in a latent by the model's own attention: one model call at one sigma (Eq. 6), through ComfyUI's own
sampling.

A `CFGGuider` with a sampler of one call is used, so that loading, ControlNet, areas and hooks are ComfyUI's business.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from ..backbone.conditions import Conditions
from ..backbone.family import Family, family_of
from ..backbone.private import PrivateTwin
from ..guidance.omniportrait.mask import resize_map, resize_mask
from ..guidance.omniportrait.settings import Settings
from .conditionings import carriers, lists_with_people
from .patch import classic
from .people import assign_people
from .recorder import SESSION_KEY, Recorder, install, session_of, uninstall
from .rows import face_maps, run_rows


class FaceSearch:
    """One look at one latent, after the call. maps, masks: [B, h, w] per person, on the latent's grid. spread:
    [B, h', w'] per person, at the self-attention's size (`Recording.spread`)."""

    def __init__(self, guider: object, family: Family, settings: Settings) -> None:
        self.people = assign_people(guider.conds, None)
        self.recorder = Recorder({uuid for _, uuid in self.people})
        self.maps: list[torch.Tensor] = []
        self.masks: list[torch.Tensor] = []
        self.spread: list[torch.Tensor] = []
        self._family, self._settings = family, settings

    def __deepcopy__(self, memo: dict) -> FaceSearch:
        return self

    def look(self, conds: dict[str, list[dict]], x: torch.Tensor, sigma: torch.Tensor) -> None:
        """Run each conditioning that carries people through the private twin and keep Eq. 6's maps. conds: the
        guider's, processed."""
        base, block = self._family.base, self._family.feature_block(-1)
        hooked = any(cond.get("hooks") is not None for each in conds.values() for cond in each)
        with torch.inference_mode(False), torch.no_grad():
            x, sigma = x.clone(), sigma.clone()
            for carrier in carriers(lists_with_people(conds, self.people), x, float(sigma[0])):
                recorded = self.recorder.rows_of(carrier.cond)
                if carrier.part is None or recorded is None:
                    continue
                if hooked:  # the weights are those of ComfyUI's last call, which may have been another's
                    base.current_patcher.apply_hooks(hooks=carrier.cond.get("hooks"))
                # One call, so what a plain view of every foreign tensor costs is no matter.
                with contextlib.closing(PrivateTwin(self._family, x.device, Conditions(plain=True))) as twin:
                    rows = run_rows(twin, block, carrier.part, recorded, x.shape[-2:], sigma)
                tokens = (person.record.token_index for person in carrier.people)
                self.spread += [rows.recording.spread(token, rows.tokens).cpu() for token in tokens]
                for map_, mask in zip(*face_maps(rows, carrier.people, self._settings), strict=True):
                    size, canvas = tuple(rows.x.shape[-2:]), torch.zeros(x[:, 0].shape)
                    self.maps.append(canvas)
                    self.masks.append(canvas.clone())
                    rows.paste(resize_map(map_, size), self.maps[-1])
                    rows.paste(resize_mask(mask, size).float(), self.masks[-1])


def sigma_at(model: object, percent: float) -> float:
    """Sigma at a share of the sampling, 0 to 1, within what the MODEL was trained on (core gives 1e9 for 0)."""
    sampling = model.get_model_object("model_sampling")
    return min(max(float(sampling.percent_to_sigma(percent)), float(sampling.sigma_min)), float(sampling.sigma_max))


def check_latent(model: object, latent: torch.Tensor) -> None:
    """ValueError where a LATENT's samples are not [B, C, h, w] of the MODEL's channels."""
    channels = model.model.latent_format.latent_channels
    if latent.ndim != 4 or latent.shape[1] != channels:
        raise ValueError(
            f"This latent has the shape {list(latent.shape)}, but the model works on pictures of {channels} channels; "
            "connect a latent made for this model, from its VAE or Empty Latent Image."
        )


def find_faces(
    model: object, conditioning: list, latent: torch.Tensor, seed: int, sigma: float, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Refined maps in 0..1 and masks, both float [K, B, h, w] on the latent's grid, CPU; K people in the order of their
    records. Raises: ValueError as `search_faces`."""
    found = search_faces(model, conditioning, latent, seed, sigma, settings)
    return torch.stack(found.maps), torch.stack(found.masks)


def search_faces(
    model: object, conditioning: list, latent: torch.Tensor, seed: int, sigma: float, settings: Settings
) -> FaceSearch:
    """The search after its one call.

    latent: [B, C, h, w] samples as in a LATENT. It is noised to sigma with the seed's noise before the call.
    Raises: ValueError without an identity record, for other model families, and when the call did not reach the
    conditioning.
    """
    import comfy.samplers

    family = family_of(model)
    check_latent(model, latent)
    patched = classic(model).clone()
    uninstall(patched)
    found: list[FaceSearch] = []

    class OneCall(comfy.samplers.Sampler):
        """Looks once and hands the latent back."""

        def sample(
            self,
            model_wrap,
            sigmas,
            extra_args,
            callback,
            noise,
            latent_image=None,
            denoise_mask=None,
            disable_pbar=False,
        ):
            sampling = model_wrap.inner_model.model_sampling
            x = sampling.noise_scaling(
                sigmas[0], noise, torch.zeros_like(noise) if latent_image is None else latent_image
            )
            model_wrap(x, sigmas[0].expand(len(x)), **extra_args)
            return x

    def outer_sample(executor: Callable, *args: object, **kwargs: object) -> object:
        guider = executor.class_obj
        options = guider.model_options["transformer_options"]
        search = options[SESSION_KEY] = FaceSearch(guider, family, settings)
        try:
            result = executor(*args, **kwargs)
            found.append(search)
            return result
        finally:
            options.pop(SESSION_KEY, None)
            search.recorder.forget()

    def predict_noise(executor: Callable, x, sigma, model_options=None, *args, **kwargs):
        search = session_of(model_options)
        with search.recorder.recording():
            denoised = executor(x, sigma, model_options, *args, **kwargs)
        search.look(executor.class_obj.conds, x, sigma)
        return denoised

    install(patched, outer_sample, predict_noise)
    guider = comfy.samplers.CFGGuider(patched)
    # A negative that is never run, for what ComfyUI wants to hang on one: ControlNet, GLIGEN.
    text, options = conditioning[0]
    guider.set_conds(conditioning, [[text, {"pooled_output": options.get("pooled_output")}]])
    guider.set_cfg(1.0)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))  # not the global generator
    sigmas = torch.tensor([sigma, 0.0])
    guider.sample(noise, latent, OneCall(), sigmas, disable_pbar=True, seed=seed)
    if not found or not found[0].maps:
        raise ValueError(
            "The model was not asked about the conditioning at this point of the sampling, because its timestep range "
            "ends before; choose another percent or sigma."
        )
    return found[0]
