"""IC-Portrait Conditioning: positive and negative as the nets were trained with."""

from __future__ import annotations

from comfy_api.latest import io

from ..sampling.ic_conditioning import fitting
from .schema import schema_of


class ICConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitICConditioning",
            "IC-Portrait Conditioning",
            "Encodes the positive and the negative that IC-Portrait's nets were trained with: a short text, or none. A "
            "pivot encoder puts the profile into its word as well.",
            *("omniportrait", "ic portrait", "prompt", "clip text encode"),
            experimental=True,
        )

    @classmethod
    def execute(cls, clip, ic_portrait, profile, text, subject, pivot_encoder=None) -> io.NodeOutput:
        return io.NodeOutput(*fitting(clip, ic_portrait, profile, text, subject, pivot_encoder))
