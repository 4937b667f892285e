"""KSampler with RB-Guidance built in, and the picture of what it did."""

from __future__ import annotations

from comfy_api.latest import io

from ..sampling.patch import patch
from ..sampling.runs import report_of
from .guidance_inputs import settings_from
from .schema import schema_of
from .shown import shown


class RBGuidanceKSampler(io.ComfyNode):
    """ComfyUI's own KSampler on a model patched by RB-Guidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitRBGuidanceKSampler",
            "RB-Guidance KSampler",
            "KSampler that brings the fine detail of the reference face into the picture, inside the face only. It "
            "also gives the face mask it used and a plot of the similarity at each step.",
            *("omniportrait", "identity sampler", "face detail", "portrait", "reference based guidance"),
            experimental=True,
        )

    @classmethod
    def execute(
        cls, model, vae, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise,
        **guidance,
    ) -> io.NodeOutput:  # fmt: skip
        import nodes  # ComfyUI's own

        guided = patch(model, vae, settings_from(**guidance))
        (latent,) = nodes.common_ksampler(
            guided, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=denoise
        )
        text, trace = report_of(guided, latent["samples"])
        plot = trace.plot()
        return io.NodeOutput(latent, trace.mask_for(latent["samples"]), plot, text, ui=shown([plot], text))
