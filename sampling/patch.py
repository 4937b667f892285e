"""Where RB-Guidance enters ComfyUI: functions on a clone of the model, none of which holds anything between runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ..backbone.family import family_of
from ..guidance.omniportrait.settings import Settings
from .noise_mask import NoiseMask
from .people import ByHand
from .recorder import SESSION_KEY, install, uninstall
from .reference import check_vae
from .runs import ATTACHMENT, Runs
from .session import Session, predict_noise
from .trace import Trace


def patch(
    model: object,
    vae: object,
    settings: Settings,
    by_hand: ByHand | None = None,
    observe: Callable[[Trace], None] | None = None,
) -> object:
    """A clone of a MODEL that any sampler node guides; at strength 0 or u 0 the clone is bare, so bit-equal to the
    model.

    A second RB-Guidance on the same model replaces the first: guiding twice is never meant. What the runs did is in the
    clone's `Runs`; observe is called with the trace when a run ends, whole or not. Raises: ValueError for models of
    other families.
    """
    family_of(model)
    patched = (model if settings.off else classic(model)).clone()
    uninstall(patched)
    patched.remove_attachments(ATTACHMENT)
    if settings.off:
        return patched
    check_vae(vae, "RB-Guidance")

    runs = Runs()

    def outer_sample(
        executor: Callable, noise, latent_image, sampler, sigmas, denoise_mask=None, *args: object, **kwargs: object
    ) -> object:
        guider = executor.class_obj
        options = guider.model_options["transformer_options"]
        noise_mask = NoiseMask(guider, denoise_mask, noise, sigmas)
        with contextlib.closing(Session(guider, vae, settings, by_hand, noise, noise_mask)) as session:
            options[SESSION_KEY] = session
            try:
                result = executor(noise, latent_image, sampler, sigmas, denoise_mask, *args, **kwargs)
            finally:
                options.pop(SESSION_KEY, None)
                trace = session.report()
                if observe is not None:
                    observe(trace)
            runs.add(trace, result)
            return result

    install(patched, outer_sample, predict_noise)
    patched.set_attachments(ATTACHMENT, runs)
    return patched


def classic(model: object) -> object:
    """On cores that stream weights (dynamic VRAM) the same model as a classic patcher, whose weights stay while
    autograd needs them."""
    if getattr(model, "is_dynamic", None) is None or not model.is_dynamic():
        return model
    try:
        return model.get_non_dynamic_delegate()
    except RuntimeError as error:
        raise ValueError(
            "RB-Guidance needs this model's weights in one place, and its loader cannot give them that way; use a core "
            "loader, or start ComfyUI with --disable-dynamic-vram."
        ) from error
