"""IC-Portrait Sampler: progressive inference in one node."""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance.ic_portrait.settings import Settings, passes_of
from ..sampling.ic_passes import paint, side_of
from .schema import schema_of


class ICPortraitSampler(io.ComfyNode):
    """Several runs of ComfyUI's own KSampler on a model patched by IC-Portrait."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitICPortraitSampler",
            "IC-Portrait Sampler",
            "Paints the person of one photograph into another picture in several passes, each from the result of the "
            "one before. Paste Back puts the crop into its photograph.",
            *("omniportrait", "ic portrait", "face swap", "progressive", "ksampler"),
            experimental=True,
        )

    @classmethod
    def execute(
        cls, model, vae, ic_portrait, profile, style, positive, negative, seed, steps, cfg, sampler_name, scheduler,
        passes, mask_seed, **values,
    ) -> io.NodeOutput:  # fmt: skip
        settings = Settings(seed=mask_seed, **values)
        sampler = dict(
            seed=seed, steps=steps, cfg=cfg, sampler_name=sampler_name, scheduler=scheduler, positive=positive,
            negative=negative,
        )  # fmt: skip
        made = paint(
            model, vae, ic_portrait, profile, style, settings, passes_of(passes), sampler, side_of(ic_portrait)
        )
        return io.NodeOutput(made.picture, made.latent, made.flow, made.passes)
