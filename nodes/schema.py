"""What every node of the pack shares: its category, the custom socket types and two helpers for schema features that
old cores lack."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "OmniPortrait"

PivotEncoder = io.Custom("PIVOT_ENCODER")
FaceReferenceSocket = io.Custom("FACE_REFERENCE")


def advanced(widget: io.Input) -> io.Input:
    """Fold an input under "advanced" where the web page knows how.

    Set after construction: ComfyUI 0.3.75's constructors raise TypeError on the keyword and would take the whole pack
    down.
    """
    if hasattr(widget, "advanced"):
        widget.advanced = True
    else:
        widget.extra_dict["advanced"] = True
    return widget


def searchable(schema: io.Schema, *aliases: str) -> io.Schema:
    """Other words under which the node search should find this node; ignored by cores that do not know them."""
    schema.search_aliases = list(aliases)
    return schema
