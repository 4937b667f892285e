"""The face in a latent, found by the model's own attention on the subject's word."""

from __future__ import annotations

import torch.nn.functional as F
from comfy_api.latest import io

from ..guidance.omniportrait.settings import Settings
from ..sampling.face_mask import find_faces
from ..sampling.heat_map import heat_map
from .guidance_inputs import refinement_input, region_inputs
from .schema import CATEGORY, advanced, searchable


class FaceMaskFromAttention(io.ComfyNode):
    """Eq. 6 of the OmniPortrait paper at one sigma."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return searchable(
            io.Schema(
                node_id="OmniPortraitFaceMaskFromAttention",
                display_name="Face Mask From Attention",
                category=CATEGORY,
                description="Finds the person in a latent by where the model's attention looks for the subject's "
                "word. One model call; "
                "use it to see what RB-Guidance would take for the face, or as a mask for anything else.",
                inputs=[
                    io.Model.Input("model", tooltip="A Stable Diffusion 1.x, 2.x or SDXL model. It is not changed."),
                    io.Conditioning.Input(
                        "conditioning", tooltip="From Pivot Conditioning: it knows which word is the person."
                    ),
                    io.Latent.Input(
                        "latent", tooltip="The latent to look at: a finished picture, or one in the making."
                    ),
                    io.Int.Input(
                        "seed",
                        default=0,
                        min=0,
                        max=0xFFFFFFFFFFFFFFFF,
                        control_after_generate=True,
                        tooltip="Seed of the noise that is added before the model looks.",
                    ),
                    io.Float.Input(
                        "percent",
                        default=0.4,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        tooltip="How far into sampling to look: 0 is pure noise, 1 the finished picture. 0.4 is where "
                        "RB-Guidance starts "
                        "(t = 600).",
                    ),
                    *region_inputs(),
                    io.Int.Input(
                        "person",
                        default=0,
                        min=0,
                        max=64,
                        tooltip="Which person of a chain of Pivot Conditioning nodes: 1 is the first. 0 is everybody.",
                    ),
                    refinement_input(),
                    advanced(
                        io.Float.Input(
                            "sigma",
                            default=0.0,
                            min=0.0,
                            max=1000.0,
                            step=0.001,
                            tooltip="Look at exactly this sigma instead of at percent. 0 uses percent.",
                        )
                    ),
                ],
                outputs=[
                    io.Mask.Output(
                        "mask", display_name="mask", tooltip="The face at the picture's size: the map cut at beta."
                    ),
                    io.Image.Output(
                        "heat_map",
                        display_name="heat map",
                        tooltip="The refined attention map (Eq. 6), bright where it looks.",
                    ),
                ],
            ),
            "omniportrait",
            "face segmentation",
            "attention map",
            "heat map",
            "token mask",
        )

    @classmethod
    def execute(
        cls,
        model: object,
        conditioning: list,
        latent: dict,
        seed: int,
        percent: float,
        person: int,
        sigma: float,
        **region: object,
    ) -> io.NodeOutput:
        samples = latent["samples"]
        if sigma <= 0:
            sampling = model.get_model_object("model_sampling")
            sigma = min(
                max(float(sampling.percent_to_sigma(percent)), float(sampling.sigma_min)), float(sampling.sigma_max)
            )
        maps, masks = find_faces(model, conditioning, samples, seed, sigma, Settings(**region))
        if person > len(maps):
            raise ValueError(
                f"There is no person {person}: the conditioning names {len(maps)}; choose 1 to {len(maps)}, or 0 for "
                "everybody."
            )
        chosen = slice(None) if person == 0 else slice(person - 1, person)
        size = (samples.shape[-2] * 8, samples.shape[-1] * 8)
        map_ = F.interpolate(maps[chosen].amax(dim=0)[:, None], size=size, mode="bilinear")[:, 0]
        mask = F.interpolate(masks[chosen].amax(dim=0)[:, None], size=size, mode="nearest")[:, 0]
        return io.NodeOutput(mask, heat_map(map_))
