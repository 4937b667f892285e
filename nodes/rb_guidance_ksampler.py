"""KSampler with RB-Guidance built in, and the picture of what it did."""

from __future__ import annotations

import comfy.samplers
import torch
from comfy_api.latest import io

from ..sampling.patch import patch
from ..sampling.trace import Trace
from .guidance_inputs import cost_inputs, paper_inputs, settings_from, strength_inputs
from .schema import CATEGORY, searchable


class RBGuidanceKSampler(io.ComfyNode):
    """ComfyUI's own KSampler on a model patched by RB-Guidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return searchable(
            io.Schema(
                node_id="OmniPortraitRBGuidanceKSampler",
                display_name="RB-Guidance KSampler",
                category=CATEGORY,
                description="KSampler that brings the fine detail of the reference face into the picture, inside the "
                "face only. Also "
                "gives the face mask it used and a plot of the similarity at each step.",
                inputs=[
                    io.Model.Input("model", tooltip="A Stable Diffusion 1.x, 2.x or SDXL model. It is not changed."),
                    io.Vae.Input(
                        "vae", tooltip="The VAE of the model's checkpoint; it encodes the reference face once."
                    ),
                    io.Int.Input(
                        "seed",
                        default=0,
                        min=0,
                        max=0xFFFFFFFFFFFFFFFF,
                        control_after_generate=True,
                        tooltip="Seed of the noise, as in KSampler.",
                    ),
                    io.Int.Input(
                        "steps", default=30, min=1, max=10000, tooltip="Sampling steps; the paper uses 50 with DDIM."
                    ),
                    io.Float.Input(
                        "cfg",
                        default=7.5,
                        min=0.0,
                        max=100.0,
                        step=0.1,
                        round=0.01,
                        tooltip="Classifier-free guidance scale; the paper uses 7.5.",
                    ),
                    io.Combo.Input(
                        "sampler_name",
                        options=comfy.samplers.KSampler.SAMPLERS,
                        default="ddim",
                        tooltip="Sampling algorithm, as in KSampler. All of them work with the guidance.",
                    ),
                    io.Combo.Input(
                        "scheduler",
                        options=comfy.samplers.KSampler.SCHEDULERS,
                        default="normal",
                        tooltip="Noise schedule, as in KSampler.",
                    ),
                    io.Conditioning.Input(
                        "positive", tooltip="From Pivot Conditioning: it knows whose face belongs to which word."
                    ),
                    io.Conditioning.Input("negative", tooltip="What the picture should not show."),
                    io.Latent.Input("latent_image", tooltip="The latent to denoise: empty for a new picture."),
                    io.Float.Input(
                        "denoise",
                        default=1.0,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        tooltip="Below 1 the latent's own structure is kept, as in KSampler.",
                    ),
                    *strength_inputs(),
                    *paper_inputs(),
                    *cost_inputs(),
                ],
                outputs=[
                    io.Latent.Output("latent", display_name="latent", tooltip="The denoised latent."),
                    io.Mask.Output(
                        "face_mask", display_name="face mask", tooltip="The face mask of the last guided step (M_gen)."
                    ),
                    io.Image.Output(
                        "trace",
                        display_name="trace",
                        tooltip="Plot of the similarity S and of the guidance's share of the noise prediction at each "
                        "guided step, with "
                        "the masks.",
                    ),
                ],
            ),
            "omniportrait",
            "identity sampler",
            "face detail",
            "portrait",
            "reference based guidance",
        )

    @classmethod
    def execute(
        cls,
        model: object,
        vae: object,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: list,
        negative: list,
        latent_image: dict,
        denoise: float,
        mode: str,
        feature_block: int,
        **values: object,
    ) -> io.NodeOutput:
        import nodes  # ComfyUI's own

        traces: list[Trace] = []
        guided = patch(model, vae, settings_from(mode, feature_block, **values), observe=traces.append)
        (latent,) = nodes.common_ksampler(
            guided, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=denoise
        )
        trace = traces[-1] if traces else Trace()
        return io.NodeOutput(latent, _mask(trace, latent["samples"]), trace.plot())


def _mask(trace: Trace, samples: torch.Tensor) -> torch.Tensor:
    """The last M_gen, or an empty mask of the picture's size when no step was guided."""
    if trace.mask is not None:
        return trace.mask
    return torch.zeros(len(samples), samples.shape[-2] * 8, samples.shape[-1] * 8)
