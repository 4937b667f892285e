"""A node's rows of inputs.py as a V3 schema, on every ComfyUI since 0.3.64."""

from __future__ import annotations

from comfy_api.latest import io

from .inputs import INPUTS
from .outputs import OUTPUTS
from .parameter import Parameter

CATEGORY = "OmniPortrait"
TYPES = {
    "BBOX": io.Custom("BBOX"), "BOOLEAN": io.Boolean, "CLIP": io.Clip, "COMBO": io.Combo,
    "CONDITIONING": io.Conditioning, "FACE_REFERENCE": io.Custom("FACE_REFERENCE"), "FLOAT": io.Float,
    "IC_PORTRAIT": io.Custom("IC_PORTRAIT"), "IMAGE": io.Image, "INT": io.Int, "LATENT": io.Latent, "MASK": io.Mask,
    "MODEL": io.Model,
    "PIVOT_ENCODER": io.Custom("PIVOT_ENCODER"), "STRING": io.String, "VAE": io.Vae,
}  # fmt: skip


def schema_of(
    node_id: str, display_name: str, description: str, *search_aliases: str, experimental: bool = False
) -> io.Schema:
    """The schema of a node of INPUTS and OUTPUTS.

    search_aliases: other words under which the node search finds it. experimental: its effect is not yet measured on
    real checkpoints, and ComfyUI's page says so.
    """
    schema = io.Schema(
        node_id=node_id,
        display_name=display_name,
        category=CATEGORY,
        description=description,
        inputs=[_input(row) for row in INPUTS[node_id]],
        is_experimental=experimental,
        outputs=[TYPES[row.kind].Output(display_name=row.name, tooltip=row.meaning) for row in OUTPUTS[node_id]],
    )
    schema.search_aliases = list(search_aliases)  # ComfyUI 0.3.75's constructor raises TypeError on the keyword
    return schema


def _input(row: Parameter) -> io.Input:
    """A row as ComfyUI's input. What old cores' constructors do not know, and would take the pack down for, is set
    afterwards."""
    given = {"default": row.default, "min": row.low, "max": row.high, "step": row.step}
    arguments = {name: value for name, value in given.items() if value is not None} | dict(row.more)
    if row.kind == "COMBO":
        arguments["options"] = list(row.options() if callable(row.options) else row.options)
    made = TYPES[row.kind].Input(row.name, tooltip=row.tooltip, optional=row.optional, **arguments)
    made.display_name = row.label or None
    if row.advanced and hasattr(made, "advanced"):
        made.advanced = True
    elif row.advanced:
        made.extra_dict["advanced"] = True
    return made
