"""RB-Guidance as a patch on MODEL: any sampler node then guides."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..models.faces import FaceReference
from ..sampling.patch import patch
from ..sampling.people import ByHand
from .guidance_inputs import cost_inputs, paper_inputs, settings_from, strength_inputs
from .schema import CATEGORY, FaceReferenceSocket, searchable


class RBGuidance(io.ComfyNode):
    """Eq. 7 to 11 of the OmniPortrait paper, on a clone of the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return searchable(
            io.Schema(
                node_id="OmniPortraitRBGuidance",
                display_name="RB-Guidance",
                category=CATEGORY,
                description="Brings the fine detail of a reference face into the picture while it is sampled, inside "
                "the face only. "
                "Connect the result to any sampler; its positive conditioning comes from Pivot Conditioning.",
                inputs=[
                    io.Model.Input("model", tooltip="A Stable Diffusion 1.x, 2.x or SDXL model. It is not changed."),
                    io.Vae.Input(
                        "vae", tooltip="The VAE of the model's checkpoint; it encodes the reference face once."
                    ),
                    *strength_inputs(),
                    *paper_inputs(),
                    FaceReferenceSocket.Input(
                        "face_reference",
                        optional=True,
                        tooltip="Only needed when no Pivot Conditioning is connected to the sampler: the face to "
                        "bring in, together "
                        "with mask.",
                    ),
                    io.Mask.Input(
                        "mask",
                        optional=True,
                        tooltip="Only needed when no Pivot Conditioning is connected to the sampler: where the face "
                        "is in the picture "
                        "being made.",
                    ),
                    *cost_inputs(),
                ],
                outputs=[
                    io.Model.Output(
                        "guided_model", display_name="model", tooltip="The model with RB-Guidance, for any sampler."
                    )
                ],
            ),
            "omniportrait",
            "identity guidance",
            "face detail",
            "portrait",
            "reference based guidance",
        )

    @classmethod
    def execute(
        cls,
        model: object,
        vae: object,
        mode: str,
        feature_block: int,
        face_reference: FaceReference | None = None,
        mask: torch.Tensor | None = None,
        **values: object,
    ) -> io.NodeOutput:
        settings = settings_from(mode, feature_block, **values)
        return io.NodeOutput(patch(model, vae, settings, by_hand(face_reference, mask)))


def by_hand(face_reference: FaceReference | None, mask: torch.Tensor | None) -> ByHand | None:
    """Both inputs or none; an empty or half given pair is a mistake that would otherwise show only as an unguided
    picture."""
    if face_reference is None and mask is None:
        return None
    if face_reference is None or mask is None:
        missing = "face_reference" if face_reference is None else "mask"
        raise ValueError(f"RB-Guidance got only one of face_reference and mask; connect {missing} too, or neither.")
    mask = mask.reshape(-1, *mask.shape[-2:])[:1].float().cpu()
    if not torch.isfinite(mask).all() or mask.max() < 0.5:
        raise ValueError(
            "The mask given to RB-Guidance is empty; paint or connect a mask that is white where the face will be."
        )
    return ByHand(face_reference, mask)
