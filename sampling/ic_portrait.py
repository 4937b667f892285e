"""IC-Portrait inside ComfyUI: where it enters, on a clone of the model.

The picture is wide inside the UNet's own call alone (`ic_run.py`): samplers, previews, latents and masks never see it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from ..backbone.family import LATENT_SCALE, family_of
from ..guidance.ic_portrait.settings import Settings
from ..models.faces import FaceReference
from ..models.ic.handle import ICHandle
from . import recorder, reference_attention
from .ic_run import Run
from .reference import check_vae

log = logging.getLogger("omniportrait")

KEY = "omniportrait_ic_portrait"
"""Of our wrappers and nets on a model, and of the run in its options."""
CELLS = 8
"""A UNet halves the latent three times."""
FINDERS = 1.2
"""One finder's box of a face may be so many times another's."""


def patch(
    model: object,
    vae: object,
    handle: ICHandle,
    profile: FaceReference,
    style: FaceReference,
    settings: Settings,
    observe: Callable[[Run], None] | None = None,
) -> object:
    """A clone of a MODEL with which any sampler node paints the profile's person into the style picture; bare, so
    bit-equal, where settings are off.

    A second IC-Portrait on the same model replaces the first. observe is called with the run when it ends. Raises:
    ValueError for models of other families or shapes, for a face without landmarks where the flow needs them, and where
    the VAE is missing.
    """
    from comfy.patcher_extension import WrappersMP

    family_of(model)
    patched = model.clone()
    patched.remove_additional_models(KEY)
    for wrappers in patched.wrappers.values():
        wrappers.pop(KEY, None)
    if settings.off:
        return patched
    check(model, vae, handle, profile, style, settings)

    def outer_sample(executor: Callable, noise: torch.Tensor, *args: object, **kwargs: object) -> object:
        guider = executor.class_obj
        check_alone(guider.model_patcher)
        check_canvas(noise)
        options = guider.model_options["transformer_options"]
        run = options[KEY] = Run(guider.model_patcher, vae, handle, profile, style, settings, noise)
        try:
            return executor(noise, *args, **kwargs)
        finally:
            options.pop(KEY, None)
            if observe is not None:
                observe(run)

    def prepare_sampling(
        executor: Callable, model: object, shape: list[int], *args: object, **kwargs: object
    ) -> object:
        """What runs is twice as wide as what ComfyUI knows of, and it makes room for what it knows of."""
        return executor(model, [*shape[:-1], 2 * shape[-1]], *args, **kwargs)

    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, prepare_sampling)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, diffusion_model)
    patched.set_additional_models(KEY, [net for net in (handle.appearance, needed_matching(handle, settings)) if net])
    return patched


def found(
    model: object, vae: object, handle: ICHandle, profile: FaceReference, style: FaceReference, settings: Settings,
    positive: list, side: int,
) -> Run:  # fmt: skip
    """A run that has found the flow and sampled nothing, for a picture of it. positive: the CONDITIONING whose text the
    matching net reads. side: of both pictures, in pixels. Raises: ValueError as `patch`."""
    import comfy.model_management

    family_of(model)
    check(model, vae, handle, profile, style, settings)
    nothing = torch.zeros(1, model.model.latent_format.latent_channels, *[side // LATENT_SCALE] * 2)
    run = Run(model, vae, handle, profile, style, settings, nothing)
    comfy.model_management.load_models_gpu([handle.matching])
    with torch.inference_mode():
        run.find(positive[0][0][:1].float().to(handle.matching.load_device))
    return run


def check(
    model: object, vae: object, handle: ICHandle, profile: FaceReference, style: FaceReference, settings: Settings
) -> None:
    """Raises: ValueError where these cannot work together."""
    handle.check(model.model.model_config.unet_config)
    check_faces(profile, style, settings)
    check_matching(handle, settings)
    check_vae(vae, "IC-Portrait")


def diffusion_model(
    executor: Callable, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, y: object = None,
    control: dict | None = None, transformer_options: dict | None = None, *args: object, **kwargs: object,
) -> torch.Tensor:  # fmt: skip
    """The UNet's call, wide for as long as it lasts."""
    options = transformer_options or {}
    run = options.get(KEY)
    if run is None or not run.acts(float(options["sigmas"][0])):
        return executor(x, timesteps, context, y, control, options, *args, **kwargs)
    wide, control = run.widened(x, timesteps, context, control, options)
    return executor(wide, timesteps, context, y, control, options, *args, **kwargs)[..., x.shape[-1] :]


def needed_matching(handle: ICHandle, settings: Settings) -> object | None:
    """The matching net, where the flow is its."""
    return handle.matching if settings.flow in ("shared", "layer") else None


def check_matching(handle: ICHandle, settings: Settings) -> None:
    """Raises: ValueError where the flow asks for more of the matching net than the file has."""
    levels = handle.header.matching_levels
    if settings.flow in ("shared", "layer") and not levels:
        raise ValueError(
            f"{handle.name} has no matching net, which the flow {settings.flow} asks; set flow to landmarks."
        )
    if settings.flow == "layer" and levels < len(handle.header.shape.widths):
        raise ValueError(
            f"{handle.name} has the finer blocks of the matching net alone, but the flow layer asks all of them; set "
            "flow to shared or landmarks."
        )


def check_faces(profile: FaceReference, style: FaceReference, settings: Settings) -> None:
    """Raises: ValueError where the landmarks are asked for and a face has none."""
    for name, face in (("profile", profile), ("style", style)):
        if settings.flow == "landmarks" and face.landmarks is None:
            raise ValueError(
                f"IC-Portrait finds the way between the faces by their landmarks, but no face was found in the {name} "
                "picture; choose another picture, or set flow to shared or none."
            )


def note_unseen(handle: ICHandle, profile: FaceReference, style: FaceReference, settings: Settings) -> None:
    """A line in the log for what the nets have not seen in training: a crop that leaves more or less around its face,
    more of the style's pixels, or the profile added in another way. Nothing where the settings are off."""
    if settings.off:
        return
    header = handle.header
    if (settings.alpha, settings.beta) != header.aggregate:
        log.warning(
            "IC-Portrait: annealing and base weight are %g and %g, but %s was trained with %g and %g",
            *(settings.alpha, settings.beta, handle.name, *header.aggregate),
        )
    if (settings.flow == "none") != (header.flow == "none"):
        log.warning("IC-Portrait: flow is %s, but %s was trained with %s", settings.flow, handle.name, header.flow)
    if settings.light > header.light_most:
        log.warning(
            "IC-Portrait: light is %.2g, but %s was trained with at most %.2g; the style's person may show through",
            *(settings.light, handle.name, header.light_most),
        )
    low, high = header.crop
    for name, face in (("profile", profile), ("style", style)):
        if face.face_box is None:
            continue
        x0, y0, x1, y1 = face.face_box
        sides = face.crop.shape[1] / max(x1 - x0, y1 - y0)
        if not low / FINDERS <= sides <= high * FINDERS:
            log.warning(
                "IC-Portrait: the %s picture's crop is %.1f times its face, but %s was trained with %.2g to %.2g; set "
                "crop_factor in Face Reference accordingly",
                *(name, sides, handle.name, low, high),
            )


def check_alone(patcher: object) -> None:
    """Raises: ValueError where the model also has a method that reads the UNet's maps, which are wide now."""
    for name, key in (("RB-Guidance", recorder.KEY), ("Reference Attention", reference_attention.KEY)):
        if any(key in wrappers for wrappers in patcher.wrappers.values()):
            raise ValueError(
                f"IC-Portrait and {name} cannot work on one model, for both read what the model sees; remove one of "
                "them."
            )


def check_canvas(noise: torch.Tensor) -> None:
    """Raises: ValueError unless the latent is a square whose side the UNet can halve three times."""
    height, width = noise.shape[-2:]
    if noise.ndim != 4 or height != width or height % CELLS:
        raise ValueError(
            f"IC-Portrait paints a square crop whose side is a multiple of {CELLS * LATENT_SCALE} pixels, but this "
            f"latent is {width * LATENT_SCALE} x {height * LATENT_SCALE}; use the style_latent that IC-Portrait gives, "
            "or a square Empty Latent Image."
        )
