"""SPF-Portrait's control map: where the words of a target change a picture."""

from __future__ import annotations

import logging

from comfy_api.latest import io

from ..guidance.spf_portrait.settings import ControlMap
from ..sampling.control_picture import at_picture_size, overlay, parts_strip
from ..sampling.dual_look import fine_control_map, sigmas_around
from .schema import schema_of

log = logging.getLogger(__name__)


class FineControlMap(io.ComfyNode):
    """Eq. 7 to 9 of docs/spf_portrait.md, the mean of a few looks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitFineControlMap",
            "Fine Control Map (SFCM)",
            "Finds where the target's words change a picture: the noise difference between a model and its tuned copy, "
            "minus what belongs to the base text. Use it as a mask, or to see what a LoRA really changes.",
            *("spf-portrait", "sfcm", "attribute mask", "lora difference", "noise difference", "semantic mask"),
            experimental=True,
        )

    @classmethod
    def execute(
        cls, model, clip, base_text, target_text, latent, seed, percent, looks, phrases, tuned_model=None, image=None,
        **control,
    ) -> io.NodeOutput:  # fmt: skip
        tuned = model if tuned_model is None else tuned_model
        if tuned_model is not None and not tuned_model.patches:
            log.warning(
                "Fine Control Map: the tuned model has no LoRA, so the map shows what the target's words do to the "
                "original."
            )
        found = fine_control_map(
            model, tuned, clip, base_text, target_text, latent["samples"], seed, sigmas_around(model, percent, looks),
            ControlMap(**control), [line.strip() for line in phrases.splitlines() if line.strip()],
        )  # fmt: skip
        return io.NodeOutput(at_picture_size(found.control), overlay(found.control, image), parts_strip(found))
