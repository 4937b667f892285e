"""Save Identity: a FACE_REFERENCE to a file of `models/omniportrait_identities`."""

from __future__ import annotations

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..models.faces.identity_file import store
from .load_identity import FOLDER
from .schema import schema_of
from .shown import shown


class SaveIdentity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = schema_of(
            "OmniPortraitSaveIdentity",
            "Save Identity",
            "Keeps a person in a file for Load Identity, so that the photographs are not needed again: crops, masks, "
            "landmarks and, with a pivot encoder, its embeddings.",
            *("omniportrait", "save face", "saved person", "identity", "character"),
        )
        schema.is_output_node = True
        return schema

    @classmethod
    def execute(cls, face_reference, name, overwrite, pivot_encoder=None) -> io.NodeOutput:
        if pivot_encoder is not None:
            face_reference = pivot_encoder.remembered(face_reference)
        folder = Path(folder_paths.get_folder_paths(FOLDER)[0])
        path = store(folder, name, face_reference, overwrite)
        crops, _ = face_reference.pictures()
        return io.NodeOutput(face_reference, ui=shown([crops], path.relative_to(folder).as_posix()))
