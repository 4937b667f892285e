"""Pivot Encoder Loader: a file of `models/pivot_encoders` to a PIVOT_ENCODER."""

from __future__ import annotations

import os

import folder_paths
from comfy_api.latest import io

from ..models.pivot_handle import load_handle
from .schema import CATEGORY, PivotEncoder, searchable

FOLDER = "pivot_encoders"


class PivotEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="OmniPortraitPivotEncoderLoader",
            display_name="Pivot Encoder Loader",
            category=CATEGORY,
            description="Loads a trained Pivot ID Encoder, which puts a face into the embedding of a word.",
            inputs=[
                io.Combo.Input(
                    "pivot_encoder_name",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip="A .safetensors file in models/pivot_encoders. It has to be of your checkpoint's family.",
                )
            ],
            outputs=[
                PivotEncoder.Output(
                    display_name="pivot_encoder",
                    tooltip="For Pivot Conditioning. ComfyUI loads and offloads its weights.",
                )
            ],
        )
        return searchable(schema, "identity encoder", "face encoder", "omniportrait", "load pivot")

    @classmethod
    def validate_inputs(cls, pivot_encoder_name: str) -> bool | str:
        if folder_paths.get_full_path(FOLDER, str(pivot_encoder_name)) is not None:
            return True
        folders = " or ".join(folder_paths.get_folder_paths(FOLDER))
        return (
            f'There is no pivot encoder "{pivot_encoder_name}": put the .safetensors file into {folders}, press R to '
            "refresh the page and choose it."
        )

    @classmethod
    def fingerprint_inputs(cls, pivot_encoder_name: str) -> tuple[str, int, int] | str:
        path = folder_paths.get_full_path(FOLDER, pivot_encoder_name)
        if path is None:
            return pivot_encoder_name
        status = os.stat(path)
        return path, status.st_mtime_ns, status.st_size

    @classmethod
    def execute(cls, pivot_encoder_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_handle(folder_paths.get_full_path_or_raise(FOLDER, pivot_encoder_name)))
