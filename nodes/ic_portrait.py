"""IC-Portrait as a patch on MODEL: any sampler node then paints the profile's person."""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance.ic_portrait.settings import Settings
from ..sampling.ic_passes import side_of, style_latent
from ..sampling.ic_portrait import note_unseen, patch
from .schema import schema_of


class ICPortrait(io.ComfyNode):
    """Eq. 1 and 4 to 7 of the IC-Portrait paper, on a clone of the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitICPortrait",
            "IC-Portrait",
            "Paints the person of one photograph into the pose, light and surroundings of another. Connect model and "
            "style_latent to any sampler, with denoise about 0.7.",
            *("omniportrait", "face swap", "identity", "style", "relight"),
            experimental=True,
        )

    @classmethod
    def execute(cls, model, vae, ic_portrait, profile, style, mask_seed, **values) -> io.NodeOutput:
        settings = Settings(seed=mask_seed, **values)
        patched = patch(model, vae, ic_portrait, profile, style, settings)
        note_unseen(ic_portrait, profile, style, settings)
        return io.NodeOutput(patched, style_latent(vae, style, side_of(ic_portrait)))
