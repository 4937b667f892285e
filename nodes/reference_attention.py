"""Reference Attention as a patch on MODEL: a likeness without trained weights."""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance.reference_attention.settings import Settings
from ..sampling.people import ByHand
from ..sampling.reference_attention import patch
from .schema import schema_of


class ReferenceAttention(io.ComfyNode):
    """The portrait's self-attention also sees the tokens of the reference face, on a clone of the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitReferenceAttention",
            "Reference Attention",
            "Brings the person of a reference into the picture without any trained weights: the picture looks at the "
            "face while it is sampled. Connect the result to any sampler whose positive conditioning comes from Pivot "
            "Conditioning.",
            *("omniportrait", "reference only", "likeness", "identity", "self attention"),
            experimental=True,
        )

    @classmethod
    def execute(cls, model, vae, reference_seed, face_reference=None, **values) -> io.NodeOutput:
        settings = Settings(seed=reference_seed, **values)
        return io.NodeOutput(patch(model, vae, settings, ByHand.anywhere(face_reference)))
