"""Face Reference: one person's face, cropped square from a photograph, and its mask."""

from __future__ import annotations

import os
from pathlib import Path

from comfy_api.latest import io

from ..models.faces.build import FaceOptions, make_reference
from .schema import schema_of


class FaceReferenceNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitFaceReference",
            "Face Reference",
            "Finds a face in a photograph, crops it square with a margin and masks it. The result is the identity for "
            "Pivot Conditioning and RB-Guidance; the picture outputs show what was used.",
            *("face detect", "face crop", "detect face", "reference face", "identity", "portrait"),
            *("retinaface", "mtcnn", "facexlib", "face mask", "face parsing"),
        )

    @classmethod
    def execute(cls, image, order, index, crop_factor, no_face, mask_source, detector, mask=None) -> io.NodeOutput:
        options = FaceOptions(order, index, crop_factor, no_face, mask_source, detector)
        result = make_reference(image, mask, options, facexlib_folders())
        return io.NodeOutput(result.reference, result.reference.crop.clone(), result.mask, result.overview)


def facexlib_folders() -> list[Path]:
    """ComfyUI's folders for facexlib's files, extra_model_paths.yaml's among them; registers the name if need be."""
    import folder_paths

    folder_paths.add_model_folder_path("facexlib", os.path.join(folder_paths.models_dir, "facexlib"))
    return [Path(folder) for folder in folder_paths.get_folder_paths("facexlib")]
