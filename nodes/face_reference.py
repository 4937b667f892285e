"""Face Reference: one person's face, cropped square from a photograph, and its mask."""

from __future__ import annotations

import os
from pathlib import Path

from comfy_api.latest import io

from ..models.faces.build import MASK_SOURCES, NO_FACE_POLICIES, FaceOptions, make_reference
from ..models.faces.detector import DETECTORS, ORDERS
from .schema import CATEGORY, FaceReferenceSocket, advanced, searchable


def facexlib_folders() -> list[Path]:
    """ComfyUI's folders for facexlib's files, extra_model_paths.yaml's among them; registers the name if need be."""
    import folder_paths

    folder_paths.add_model_folder_path("facexlib", os.path.join(folder_paths.models_dir, "facexlib"))
    return [Path(folder) for folder in folder_paths.get_folder_paths("facexlib")]


class FaceReferenceNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return searchable(
            io.Schema(
                node_id="OmniPortraitFaceReference",
                display_name="Face Reference",
                category=CATEGORY,
                description="Finds a face in a photograph, crops it square with a margin and masks it. The result is "
                "the identity for Pivot Conditioning and RB-Guidance; the picture outputs show what was "
                "used.",
                inputs=_inputs(),
                outputs=[
                    FaceReferenceSocket.Output(
                        display_name="face_reference", tooltip="The face for Pivot Conditioning or RB-Guidance."
                    ),
                    io.Image.Output(display_name="crop", tooltip="The square crop that is used, 256 to 1024 pixels."),
                    io.Mask.Output(
                        display_name="face_mask",
                        tooltip="The face inside the crop, in the crop's size. All white when the mask is "
                        "left to the model's own attention.",
                    ),
                    io.Image.Output(
                        display_name="overview",
                        tooltip="The photograph with every face found, numbered in the chosen order: the "
                        "one that is used in green, its crop in blue, others in yellow.",
                    ),
                ],
            ),
            "face detect",
            "face crop",
            "detect face",
            "reference face",
            "identity",
            "portrait",
            "retinaface",
            "mtcnn",
            "facexlib",
            "face mask",
            "face parsing",
        )

    @classmethod
    def execute(cls, image, order, index, crop_factor, no_face, mask_source, detector, mask=None) -> io.NodeOutput:
        options = FaceOptions(order, index, crop_factor, no_face, mask_source, detector)
        result = make_reference(image, mask, options, facexlib_folders())
        return io.NodeOutput(result.reference, result.reference.crop.clone(), result.mask, result.overview)


def _inputs() -> list[io.Input]:
    return [
        io.Image.Input(
            "image",
            tooltip="A photograph of the person, the face upright and well visible. Of a batch the first is used.",
        ),
        io.Combo.Input(
            "order",
            options=list(ORDERS),
            default="largest",
            tooltip="How the faces are sorted before one is taken by index. The overview output shows the numbers.",
        ),
        io.Int.Input("index", default=0, min=0, max=99, tooltip="Which face to take in that order; 0 is the first."),
        io.Float.Input(
            "crop_factor",
            default=2.0,
            min=1.0,
            max=6.0,
            step=0.1,
            tooltip="Side of the square crop over the larger side of the face's box. 2 leaves room for hair "
            "and chin; borders outside of the photograph repeat its edge.",
        ),
        io.Combo.Input(
            "no_face",
            options=list(NO_FACE_POLICIES),
            default="stop",
            tooltip="When no face is found and no mask is connected: stop with an error, or go on with the "
            "whole image.",
        ),
        advanced(
            io.Combo.Input(
                "mask_source",
                options=list(MASK_SOURCES),
                default="auto",
                tooltip="Where the face mask comes from. auto: facexlib's parser if its file is there, "
                "else an oval fitted to the landmarks. landmarks: always the oval. attention: "
                "no mask, the model's own attention on the reference finds the face. whole "
                "crop: everything. A connected mask wins.",
            )
        ),
        advanced(
            io.Combo.Input(
                "detector",
                options=list(DETECTORS),
                default="auto",
                tooltip="auto: facexlib if its files are in models/facexlib, else the built-in MTCNN. "
                "Nothing is downloaded.",
            )
        ),
        io.Mask.Input(
            "mask",
            optional=True,
            tooltip="Your own mask of the face, over the photograph. It picks the face that it covers, takes "
            "the place of the made mask, and is cropped around when no face is found. An empty mask "
            "is ignored.",
        ),
    ]
