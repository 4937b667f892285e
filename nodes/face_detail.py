"""Face Detail: the face of an existing picture painted anew at full resolution, by whatever guides the model."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..sampling.detail import Detail, detail
from .face_reference import facexlib_folders
from .schema import schema_of
from .shown import shown


class FaceDetail(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitFaceDetail",
            "Face Detail",
            "Finds a face in an existing picture, paints it anew on an enlarged crop and puts it back. With a model "
            "from Reference Attention or RB-Guidance and the conditioning of Pivot Conditioning the face becomes that "
            "person's.",
            *("face detailer", "detailer", "adetailer", "face fix", "restore face", "inpaint face", "omniportrait"),
            experimental=True,
        )

    @classmethod
    def execute(cls, model, vae, positive, negative, image, **how) -> io.NodeOutput:
        done = detail(model, vae, positive, negative, image, Detail(**how), facexlib_folders())
        both = torch.cat([done.before, done.after], dim=2)  # before and after, side by side
        return io.NodeOutput(done.image, done.after, done.mask, done.latent, ui=shown([both]))
