"""IC-Portrait Flow: how the landmarks lay one face upon another."""

from __future__ import annotations

from comfy_api.latest import io

from ..sampling.ic_pictures import overview
from ..sampling.ic_run import by_landmarks, sized
from .schema import schema_of

SIDE, CELLS = 512, 64


class ICFlow(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitICFlow",
            "IC-Portrait Flow",
            "Shows how the profile is laid upon the style picture by eyes, nose and mouth: what IC-Portrait warps by.",
            *("omniportrait", "warp", "align faces", "landmarks", "flow"),
        )

    @classmethod
    def execute(cls, profile, style) -> io.NodeOutput:
        for name, face in (("profile", profile), ("style", style)):
            if face.landmarks is None:
                raise ValueError(
                    f"No face was found in the {name} picture, so there are no landmarks to lay one upon the other by; "
                    "choose another picture."
                )
        flow = by_landmarks(profile, style, (CELLS, CELLS))
        return io.NodeOutput(overview(sized(profile.crop, SIDE), sized(style.crop, SIDE), flow, None))
