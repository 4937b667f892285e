"""IC-Portrait Flow: how one face is laid upon another."""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance.ic_portrait.settings import Settings
from ..sampling.ic_passes import side_of
from ..sampling.ic_pictures import overview
from ..sampling.ic_portrait import found
from ..sampling.ic_run import by_landmarks, sized
from .schema import schema_of

SIDE, CELLS = 512, 64


class ICFlow(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitICFlow",
            "IC-Portrait Flow",
            "Shows how the profile is laid upon the style picture: by eyes, nose and mouth, or, with a model and "
            "trained nets connected, by the matching net.",
            *("omniportrait", "warp", "align faces", "landmarks", "flow"),
        )

    @classmethod
    def execute(cls, profile, style, model=None, vae=None, ic_portrait=None, positive=None) -> io.NodeOutput:
        needed = {"model": model, "vae": vae, "ic_portrait": ic_portrait, "positive": positive}
        missing = [name for name, value in needed.items() if value is None]
        if len(missing) == len(needed):
            side, flow, trusted = SIDE, by_landmarks(profile, style, (CELLS, CELLS)), None
            if flow is None:
                name = "profile" if profile.landmarks is None else "style"
                raise ValueError(
                    f"No face was found in the {name} picture, so there are no landmarks to lay one upon the other by; "
                    "choose another picture."
                )
        elif missing:
            raise ValueError(
                f"The matching net's flow needs {', '.join(needed)}, but nothing is connected to {', '.join(missing)}; "
                "connect all of them, or none to see the landmarks' flow."
            )
        else:
            side, settings = side_of(ic_portrait), Settings(flow="shared")
            run = found(model, vae, ic_portrait, profile, style, settings, positive, side)
            flow, trusted = run.flow, run.trusted
        return io.NodeOutput(overview(sized(profile.crop, side), sized(style.crop, side), flow, trusted))
