"""What RB-Guidance did, for any sampler: read from the guided model after it has sampled."""

from __future__ import annotations

from comfy_api.latest import io

from ..sampling.runs import report_of
from .schema import schema_of
from .shown import shown


class RBGuidanceReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = schema_of(
            "OmniPortraitRBGuidanceReport",
            "RB-Guidance Report",
            "Shows what RB-Guidance did while a sampler ran: the face mask, a plot of each guided step and how many "
            "there were. The latent goes through unchanged; connecting it makes the report wait for the sampler.",
            *("omniportrait", "guidance trace", "face mask", "plot", "inspect guidance"),
        )
        schema.is_output_node = True
        return schema

    @classmethod
    def execute(cls, model, latent) -> io.NodeOutput:
        text, trace = report_of(model, latent["samples"])
        plot = trace.plot()
        return io.NodeOutput(latent, trace.mask_for(latent["samples"]), plot, text, ui=shown([plot], text))
