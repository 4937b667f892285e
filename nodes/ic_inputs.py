"""The inputs and outputs of IC-Portrait's nodes (inputs.py holds everybody's)."""

from __future__ import annotations

from functools import partial
from typing import get_args

from ..guidance.ic_portrait.settings import FlowSource, Settings
from .files import names_in
from .parameter import Output, Parameter

IC = Settings()
LARGEST_SEED = 0xFFFFFFFFFFFFFFFF


def _samplers() -> list[str]:
    import comfy.samplers

    return comfy.samplers.KSampler.SAMPLERS


def _schedulers() -> list[str]:
    import comfy.samplers

    return comfy.samplers.KSampler.SCHEDULERS


# fmt: off
MODEL = Parameter("model", "MODEL", meaning="A Stable Diffusion 1.x model of the file's family. It is not changed.")
VAE = Parameter("vae", "VAE", meaning="The VAE of the model's checkpoint. It encodes both pictures, once.")
FILE = Parameter("ic_portrait", "IC_PORTRAIT", meaning="From IC-Portrait Loader.")
PROFILE = Parameter("profile", "FACE_REFERENCE",
    meaning="Who: one photograph of the person, from Face Reference. The result resembles this photograph.")
STYLE = Parameter("style", "FACE_REFERENCE",
    meaning="The picture that is to show that person, from Face Reference: its pose, light and surroundings stay.")

STRENGTH = Parameter("strength", "FLOAT", IC.strength, 0.0, 2.0, 0.05,
    meaning="Factor on what the nets add. 0 switches it off: the picture is then bit-equal to the plain sampler's.")
LIGHT = Parameter("light", "FLOAT", IC.light, 0.0, 1.0, 0.01, equation="r, after Eq. 1",
    meaning="Share of the style picture's pixels that the nets see. More keeps its light and colours more closely, but "
    "its person shows through. The nets were trained with up to 0.2.")
FLOW = Parameter("flow", "COMBO", IC.flow, options=get_args(FlowSource), equation="F in Eq. 4 to 6", advanced=True,
    meaning="Where each place of the face lies in the profile. landmarks: by eyes, nose and mouth of both pictures. "
    "shared: by the matching net, once for all levels. layer: by the matching net at each level, as printed. none: "
    "the profile is not warped.")
ALPHA = Parameter("alpha", "FLOAT", IC.alpha, 0.0, 2.0, 0.05, label="annealing", equation="α in Eq. 7", advanced=True,
    meaning="How much more of the warped profile fine levels take than coarse ones. 0, with base weight 1, is the "
    "paper's ablation.")
BETA = Parameter("beta", "FLOAT", IC.beta, 0.0, 2.0, 0.05, label="base weight", equation="β in Eq. 7", advanced=True,
    meaning="How much of the warped profile every level takes.")
MASK_SEED = Parameter("mask_seed", "INT", IC.seed, 0, 2**32 - 1, advanced=True,
    meaning="Which of the style picture's pixels are shown, and the profile's noise. It does not touch the sampler's.")
START = Parameter("start_percent", "FLOAT", IC.start_percent, 0.0, 1.0, 0.01, advanced=True,
    meaning="Where in the sampling the nets start.")
END = Parameter("end_percent", "FLOAT", IC.end_percent, 0.0, 1.0, 0.01, advanced=True,
    meaning="Where in the sampling the nets end.")
METHOD = (STRENGTH, LIGHT, FLOW, ALPHA, BETA, MASK_SEED, START, END)

IC_INPUTS: dict[str, tuple[Parameter, ...]] = {
    "OmniPortraitICPortraitLoader": (
        Parameter("ic_portrait_name", "COMBO", options=partial(names_in, "ic_portrait"), choices="the files found",
            meaning="A .safetensors file in models/ic_portrait. It has to be of your checkpoint's family."),
    ),
    "OmniPortraitICPortrait": (MODEL, VAE, FILE, PROFILE, STYLE, *METHOD),
    "OmniPortraitICConditioning": (
        Parameter("clip", "CLIP", meaning="The checkpoint's text encoder."),
        FILE, PROFILE,
        Parameter("text", "STRING", "a photo of a woman", more={"multiline": True, "dynamic_prompts": True},
            meaning="A short prompt: the style picture says the rest. No effect where the nets were trained without a "
            "text."),
        Parameter("subject", "STRING", "woman", meaning="The word of the prompt that names the person."),
        Parameter("pivot_encoder", "PIVOT_ENCODER", optional=True,
            meaning="A trained pivot encoder of the checkpoint's family: the word then takes on the face, too."),
    ),
    "OmniPortraitICPortraitSampler": (
        MODEL, VAE, FILE, PROFILE, STYLE,
        Parameter("positive", "CONDITIONING", meaning="From IC-Portrait Conditioning, or any other."),
        Parameter("negative", "CONDITIONING", meaning="What the picture should not show. May be an empty text."),
        Parameter("seed", "INT", 0, 0, LARGEST_SEED, more={"control_after_generate": True},
            meaning="Seed of the first pass's noise; each further pass has the next one."),
        Parameter("steps", "INT", 30, 1, 10000, meaning="Sampling steps of each pass, over its own part of the "
            "noise."),
        Parameter("cfg", "FLOAT", 3.0, 0.0, 100.0, 0.1, more={"round": 0.01},
            meaning="Classifier-free guidance scale."),
        Parameter("sampler_name", "COMBO", "ddim", options=_samplers, choices="as in KSampler",
            meaning="The sampling algorithm. All of KSampler's work."),
        Parameter("scheduler", "COMBO", "normal", options=_schedulers, choices="as in KSampler",
            meaning="The noise schedule, as in KSampler."),
        Parameter("passes", "STRING", "0.7, 0.5, 0.35",
            meaning="Noise strength of each pass, which starts from the picture of the one before. One number is a "
            "single pass."),
        *METHOD,
    ),
    "OmniPortraitICFlow": (
        Parameter("profile", "FACE_REFERENCE", meaning="The person's photograph, from Face Reference."),
        Parameter("style", "FACE_REFERENCE", meaning="The picture that is to show that person, from Face Reference."),
        Parameter("model", "MODEL", optional=True,
            meaning="With this and the three inputs below, the flow shown is the matching net's, as flow: shared uses "
            "it."),
        Parameter("vae", "VAE", optional=True, meaning="The VAE of the model's checkpoint."),
        Parameter("ic_portrait", "IC_PORTRAIT", optional=True,
            meaning="From IC-Portrait Loader: a file with a matching net."),
        Parameter("positive", "CONDITIONING", optional=True,
            meaning="The text that the nets read, from IC-Portrait Conditioning."),
    ),
    "OmniPortraitPasteBack": (
        Parameter("photo", "IMAGE", meaning="The photograph that the style came from. Of several, the first."),
        Parameter("face", "IMAGE", meaning="The new crop. Of several, the first."),
        Parameter("style", "FACE_REFERENCE", meaning="From Face Reference: it knows where in the photograph the crop "
            "was."),
        Parameter("feather", "FLOAT", 0.12, 0.0, 0.5, 0.01,
            meaning="Width of the soft border, in sides of the crop."),
        Parameter("mask", "MASK", optional=True, meaning="What of the crop is taken, such as Face Reference's "
            "face_mask. Without it the whole square is."),
    ),
}
IC_OUTPUTS: dict[str, tuple[Output, ...]] = {
    "OmniPortraitICPortraitLoader": (Output("ic_portrait", "IC_PORTRAIT", "The nets, for IC-Portrait."),),
    "OmniPortraitICPortrait": (
        Output("model", "MODEL", "The model that paints the profile's person, for any sampler."),
        Output("style_latent", "LATENT", "The style picture's crop at the size that the nets were trained at, for a "
            "sampler whose denoise is below 1."),
    ),
    "OmniPortraitICConditioning": (
        Output("positive", "CONDITIONING", "What the picture shows."),
        Output("negative", "CONDITIONING", "The empty text."),
    ),
    "OmniPortraitICPortraitSampler": (
        Output("image", "IMAGE", "The painted crop, for Paste Back."),
        Output("latent", "LATENT", "Its latent."),
        Output("flow", "IMAGE", "Profile, style, the profile warped, the flow as colours and, of the matching net, "
            "where it was found."),
        Output("passes", "IMAGE", "Profile, style, and what each pass gave, in a row."),
    ),
    "OmniPortraitICFlow": (
        Output("image", "IMAGE", "Profile, style, the profile warped, the flow as colours and, of the matching net, "
            "where it was found."),
    ),
    "OmniPortraitPasteBack": (
        Output("image", "IMAGE", "The photograph with the new crop in it."),
        Output("mask", "MASK", "How much of each pixel is new."),
    ),
}
# fmt: on
