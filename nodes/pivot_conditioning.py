"""Pivot Conditioning: the only node that sees both the words of the prompt and the face."""

from __future__ import annotations

from comfy_api.latest import io

from ..sampling.annotation import Person, annotate
from .schema import CATEGORY, FaceReferenceSocket, PivotEncoder, advanced, searchable


class PivotConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="OmniPortraitPivotConditioning",
            display_name="Pivot Conditioning",
            category=CATEGORY,
            description=(
                "Encodes a prompt and ties one of its words to a person: with a pivot encoder the word takes on the "
                "face, without one it is only marked, so that RB-Guidance knows which word is whom. Chain several "
                "for several people."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder of the checkpoint: CLIP of SD1.x, SD2.x or SDXL."),
                FaceReferenceSocket.Input("face_reference", tooltip="The person's face, from Face Reference."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    default="a photo of a woman in a garden",
                    tooltip="The prompt. With a base conditioning: the same text as in the node that made it.",
                ),
                io.String.Input(
                    "subject",
                    default="woman",
                    tooltip='The word (or words, such as "young woman") of the text that names this person.',
                ),
                io.Int.Input(
                    "occurrence",
                    default=1,
                    min=1,
                    max=999,
                    tooltip="Which of its repetitions, if the text has the subject more than once: 1 is the first.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="From the plain word (0) to the pivot (1). Without a pivot encoder it does nothing.",
                ),
                PivotEncoder.Input(
                    "pivot_encoder",
                    optional=True,
                    tooltip="A trained Pivot ID Encoder. Without it the text is only annotated.",
                ),
                io.Conditioning.Input(
                    "base_conditioning",
                    optional=True,
                    tooltip="Annotated instead of encoding: another person's Pivot Conditioning, or PhotoMaker.",
                ),
                advanced(
                    io.Mask.Input(
                        "region",
                        optional=True,
                        tooltip="Limits this person to a part of the picture. Any size; white is where.",
                    )
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning",
                    tooltip="The prompt with the person in it, for the sampler or for the next person.",
                )
            ],
        )
        return searchable(schema, "identity", "face", "id embedding", "omniportrait", "photomaker", "clip text encode")

    @classmethod
    def execute(
        cls,
        clip,
        face_reference,
        text,
        subject,
        occurrence,
        strength,
        pivot_encoder=None,
        base_conditioning=None,
        region=None,
    ) -> io.NodeOutput:
        person = Person(
            face=face_reference,
            subject=subject,
            occurrence=occurrence - 1,
            strength=strength,
            pivot=None if pivot_encoder is None else pivot_encoder.pivot(face_reference),
            region=region,
        )
        return io.NodeOutput(annotate(clip, text, person, base_conditioning))
