"""Load Identity: a file that Save Identity wrote to a FACE_REFERENCE."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.faces.identity_file import load
from .files import fingerprint, missing, path_of
from .schema import schema_of
from .shown import shown

FOLDER = "omniportrait_identities"


class LoadIdentity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitLoadIdentity",
            "Load Identity",
            "Loads a person that Save Identity kept, in place of photographs and Face Reference.",
            *("omniportrait", "load face", "saved person", "identity", "character"),
        )

    @classmethod
    def validate_inputs(cls, identity_name: str | None) -> bool | str:
        # None: the name comes through a link and is not known before the run.
        return identity_name is None or path_of(FOLDER, identity_name) is not None or _missing(identity_name)

    @classmethod
    def fingerprint_inputs(cls, identity_name: str | None) -> tuple[str, int, int] | str | None:
        return fingerprint(FOLDER, identity_name)

    @classmethod
    def execute(cls, identity_name: str) -> io.NodeOutput:
        path = path_of(FOLDER, identity_name)
        if path is None:
            raise ValueError(_missing(identity_name))
        reference = load(path)
        return io.NodeOutput(reference, *reference.pictures(), ui=shown([reference.pictures()[0]]))


def _missing(name: str) -> str:
    return missing(FOLDER, name, "identity", "make one with Save Identity or put the .safetensors file into")
