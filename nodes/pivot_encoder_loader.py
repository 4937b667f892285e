"""Pivot Encoder Loader: a file of `models/pivot_encoders` to a PIVOT_ENCODER."""

from __future__ import annotations

import os

import folder_paths
from comfy_api.latest import io

from ..models.pivot.handle import load_handle
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
        )

    @classmethod
    def validate_inputs(cls, pivot_encoder_name: str | None) -> bool | str:
        # None: the name comes through a link and is not known before the run.
        return pivot_encoder_name is None or _path(pivot_encoder_name) is not None or _missing(pivot_encoder_name)

    @classmethod
    def fingerprint_inputs(cls, pivot_encoder_name: str | None) -> tuple[str, int, int] | str | None:
        path = _path(pivot_encoder_name)
        if path is None:
            return pivot_encoder_name
        status = os.stat(path)
        return path, status.st_mtime_ns, status.st_size

    @classmethod
    def execute(cls, pivot_encoder_name: str) -> io.NodeOutput:
        path = _path(pivot_encoder_name)
        if path is None:
            raise ValueError(_missing(pivot_encoder_name))
        return io.NodeOutput(load_handle(path))


def _path(name: str | None) -> str | None:
    return None if name is None else folder_paths.get_full_path(FOLDER, str(name))


def _missing(name: str) -> str:
    folders = " or ".join(folder_paths.get_folder_paths(FOLDER))
    return (
        f'There is no pivot encoder "{name}": put the .safetensors file into {folders}, press R to refresh the page '
        "and choose it."
    )
