"""What a node shows inside itself."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..models.faces import FaceReference


def crops_preview(node: type[io.ComfyNode], face: FaceReference, *lines: str) -> dict:
    """The crops of a person's photographs, and lines of text; a script finds both in the history."""
    pictures, _ = face.pictures()
    return {**ui.PreviewImage(pictures, cls=node).as_dict(), "text": lines}
