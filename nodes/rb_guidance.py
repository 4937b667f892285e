"""RB-Guidance as a patch on MODEL: any sampler node then guides."""

from __future__ import annotations

from comfy_api.latest import io

from ..sampling.patch import patch
from ..sampling.people import ByHand
from .guidance_inputs import settings_from
from .schema import schema_of


class RBGuidance(io.ComfyNode):
    """Eq. 6 to 11 of the OmniPortrait paper, on a clone of the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitRBGuidance",
            "RB-Guidance",
            "Brings the fine detail of a reference face into the picture while it is sampled, inside the face only. "
            "Connect the result to any sampler whose positive conditioning comes from Pivot Conditioning.",
            *("omniportrait", "identity guidance", "face detail", "portrait", "reference based guidance"),
            experimental=True,
        )

    @classmethod
    def execute(cls, model, vae, face_reference=None, mask=None, **guidance) -> io.NodeOutput:
        by_hand = ByHand.given(face_reference, mask)
        return io.NodeOutput(patch(model, vae, settings_from(**guidance), by_hand))
