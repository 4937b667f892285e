"""Face Reference: one person's face, cropped square from their photographs, and its mask."""

from __future__ import annotations

import os
from pathlib import Path

from comfy_api.latest import io

from ..models.faces.build import FaceOptions, make_references
from .schema import schema_of
from .shown import shown


class FaceReferenceNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = schema_of(
            "OmniPortraitFaceReference",
            "Face Reference",
            "Finds a face in a photograph, crops it square with a margin and masks it. The result is the identity for "
            "Pivot Conditioning and RB-Guidance; the picture outputs show what was used.",
            *("face detect", "face crop", "detect face", "reference face", "identity", "portrait"),
            *("retinaface", "mtcnn", "facexlib", "face mask", "face parsing"),
        )
        schema.is_output_node = True  # of the others ComfyUI does not tell the page again what is shown, once cached
        schema.is_input_list = True  # a list as a whole, so that one entry of it can be skipped
        for output in schema.outputs:
            output.is_output_list = True
        return schema

    @classmethod
    def execute(cls, image, order, index, crop_factor, no_face, mask_source, detector, mask=(None,)) -> io.NodeOutput:
        """All inputs are lists; a shorter one repeats its last entry, as everywhere in ComfyUI."""
        given = image, mask, order, index, crop_factor, no_face, mask_source, detector
        entries = [[values[min(k, len(values) - 1)] for values in given] for k in range(max(map(len, given)))]
        images, masks, *_ = zip(*entries, strict=True)
        options = [FaceOptions(*entry[2:]) for entry in entries]
        results = make_references(images, masks, options, facexlib_folders())
        return io.NodeOutput(
            [result.reference for result in results],
            [result.crop for result in results],
            [result.mask for result in results],
            [result.overview for result in results],
            [result.photo_mask for result in results],
            [result.boxes for result in results],
            ui=shown(result.overview for result in results),
        )


def facexlib_folders() -> list[Path]:
    """ComfyUI's folders for facexlib's files, extra_model_paths.yaml's among them; registers the name if need be."""
    import folder_paths

    folder_paths.add_model_folder_path("facexlib", os.path.join(folder_paths.models_dir, "facexlib"))
    return [Path(folder) for folder in folder_paths.get_folder_paths("facexlib")]
