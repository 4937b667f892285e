"""Pivot Encoder Loader: a file of `models/pivot_encoders` to a PIVOT_ENCODER."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.pivot.handle import load_handle
from .files import fingerprint, missing, path_of
from .schema import schema_of

FOLDER = "pivot_encoders"


class PivotEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitPivotEncoderLoader",
            "Pivot Encoder Loader",
            "Loads a trained Pivot ID Encoder, the network that puts a face into the embedding of a word.",
            *("identity encoder", "face encoder", "omniportrait", "load pivot"),
            experimental=True,
        )

    @classmethod
    def validate_inputs(cls, pivot_encoder_name: str | None) -> bool | str:
        # None: the name comes through a link and is not known before the run.
        known = pivot_encoder_name is None or path_of(FOLDER, pivot_encoder_name) is not None
        return known or _missing(pivot_encoder_name)

    @classmethod
    def fingerprint_inputs(cls, pivot_encoder_name: str | None) -> tuple[str, int, int] | str | None:
        return fingerprint(FOLDER, pivot_encoder_name)

    @classmethod
    def execute(cls, pivot_encoder_name: str) -> io.NodeOutput:
        path = path_of(FOLDER, pivot_encoder_name)
        if path is None:
            raise ValueError(_missing(pivot_encoder_name))
        return io.NodeOutput(load_handle(path))


def _missing(name: str) -> str:
    return missing(FOLDER, name, "pivot encoder", "put the .safetensors file into")
