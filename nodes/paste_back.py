"""Paste Back: a new crop into the photograph that Face Reference took it from."""

from __future__ import annotations

from comfy_api.latest import io

from ..sampling.ic_pictures import pasted
from .schema import schema_of


class PasteBack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitPasteBack",
            "Paste Back",
            "Puts a new face crop back into the photograph that Face Reference cut it from, with a soft border.",
            *("omniportrait", "uncrop", "stitch", "composite", "face swap"),
        )

    @classmethod
    def execute(cls, photo, face, style, feather, mask=None) -> io.NodeOutput:
        picture = photo[:1, ..., :3].float().cpu()
        return io.NodeOutput(*pasted(picture, face[:1, ..., :3].float().cpu(), style, feather, mask))
