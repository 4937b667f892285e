"""The face in a latent, found by the model's own attention on the subject's word."""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance.omniportrait.settings import Settings
from ..sampling.heat_map import heat_map, of_person
from ..sampling.single_call import find_faces, sigma_at
from .schema import schema_of


class FaceMaskFromAttention(io.ComfyNode):
    """Eq. 6 of the OmniPortrait paper at one sigma."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitFaceMaskFromAttention",
            "Face Mask From Attention",
            "Finds the person in a latent by where the model's attention looks for the subject's word. One model call; "
            "use it to see what RB-Guidance would take for the face, or as a mask for anything else.",
            *("omniportrait", "face segmentation", "attention map", "heat map", "token mask"),
            experimental=True,
        )

    @classmethod
    def execute(cls, model, conditioning, latent, seed, percent, person, sigma, **eq6) -> io.NodeOutput:
        at = sigma if sigma > 0 else sigma_at(model, percent)
        maps, masks = find_faces(model, conditioning, latent["samples"], seed, at, Settings(**eq6))
        return io.NodeOutput(of_person(masks, person, "nearest"), heat_map(of_person(maps, person, "bilinear")))
