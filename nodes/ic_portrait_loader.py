"""IC-Portrait Loader: a file of `models/ic_portrait` to an IC_PORTRAIT."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.ic.handle import load_handle
from .files import fingerprint, missing, path_of
from .schema import schema_of

FOLDER = "ic_portrait"


class ICPortraitLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema_of(
            "OmniPortraitICPortraitLoader",
            "IC-Portrait Loader",
            "Loads trained IC-Portrait nets, which paint one person into another picture's pose and light.",
            *("omniportrait", "ic portrait", "load ic-portrait", "face swap"),
            experimental=True,
        )

    @classmethod
    def validate_inputs(cls, ic_portrait_name: str | None) -> bool | str:
        # None: the name comes through a link and is not known before the run.
        known = ic_portrait_name is None or path_of(FOLDER, ic_portrait_name) is not None
        return known or _missing(ic_portrait_name)

    @classmethod
    def fingerprint_inputs(cls, ic_portrait_name: str | None) -> tuple[str, int, int] | str | None:
        return fingerprint(FOLDER, ic_portrait_name)

    @classmethod
    def execute(cls, ic_portrait_name: str) -> io.NodeOutput:
        path = path_of(FOLDER, ic_portrait_name)
        if path is None:
            raise ValueError(_missing(ic_portrait_name))
        return io.NodeOutput(load_handle(path))


def _missing(name: str) -> str:
    return missing(FOLDER, name, "IC-Portrait file", "put the .safetensors file that train ic-portrait wrote into")
