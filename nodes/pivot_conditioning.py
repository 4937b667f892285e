"""Pivot Conditioning: the only node that sees both the words of the prompt and the face."""

from __future__ import annotations

from comfy_api.latest import io

from ..sampling.annotation import Annotation, annotate
from .schema import schema_of


class PivotConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitPivotConditioning",
            "Pivot Conditioning",
            "Encodes a prompt and ties one of its words to a person. With a pivot encoder the word takes on the face; "
            "without one it is only marked, so that RB-Guidance knows which word is which person. Chain several for "
            "several people.",
            *("identity", "face", "id embedding", "omniportrait", "photomaker", "clip text encode"),
            experimental=True,
        )

    @classmethod
    def execute(
        cls, clip, face_reference, text, subject, occurrence, strength,
        pivot_encoder=None, base_conditioning=None, region=None, combine_photographs="norm mean",
    ) -> io.NodeOutput:  # fmt: skip
        annotation = Annotation(
            face=face_reference,
            subject=subject,
            occurrence=occurrence - 1,
            strength=strength,
            pivot=None if pivot_encoder is None else pivot_encoder.pivot(face_reference, combine_photographs),
            region=region,
        )
        return io.NodeOutput(annotate(clip, text, annotation, base_conditioning))
