"""The inputs that RB-Guidance and RB-Guidance KSampler share, and what becomes of them."""

from __future__ import annotations

from typing import get_args

from ..guidance.omniportrait.settings import (
    Checkpointing,
    Curve,
    GuidedPass,
    Mode,
    Reduction,
    Refinement,
    Settings,
)
from .parameter import Parameter

DEFAULT = Settings()

# fmt: off
# One row a parameter: name, type, default, lowest, highest, step.
STRENGTH = Parameter("strength", "FLOAT", DEFAULT.strength, 0.0, 10.0, 0.05,
    meaning="How strong the guidance is. 0 switches it off: the picture is then bit-equal to the plain sampler's.")
START_PERCENT = Parameter("start_percent", "FLOAT", DEFAULT.start_percent, 0.0, 1.0, 0.01, optional=True,
    meaning="Where in the sampling the guidance may start. u holds, too: at 0 it starts where u says.")
END_PERCENT = Parameter("end_percent", "FLOAT", DEFAULT.end_percent, 0.0, 1.0, 0.01, optional=True,
    meaning="Where in the sampling the guidance ends.")
CURVE = Parameter("curve", "COMBO", DEFAULT.curve, options=get_args(Curve), optional=True,
    meaning="The strength over the guided steps: constant, or fading in from 0 or out to 0, linearly in the timesteps.")
MODE = Parameter("mode", "COMBO", "calibrated", options=get_args(Mode),
    meaning="calibrated: with the gain and clip set below, for a visible effect. literal: Eq. 8 to 11 exactly as "
    "printed (sum, no gain, no clip, a gradient at every step), which is next to invisible.")
P = Parameter("p", "FLOAT", DEFAULT.p, 0.0, 1000.0, 0.1, label="energy strength", equation="p in Eq. 10", advanced=True,
    meaning="Factor in the energy E = p / (1 + S), where S is the similarity to the reference.")
U = Parameter("u", "FLOAT", DEFAULT.u, 0.0, 1.0, 0.01, label="guided share", equation="u in Eq. 11", advanced=True,
    meaning="Share of the timesteps that is guided, counted from the finished picture: 0.6 starts at t = 600. "
    "0 switches the guidance off. Steps outside of start_percent and end_percent stay out.")
T0 = Parameter("t0", "INT", int(DEFAULT.t0), 0, 999, label="reference timestep", equation="t0 in Eq. 7",
    advanced=True, meaning="How far the reference face is noised before its features are read.")
GAMMA = Parameter("gamma", "INT", DEFAULT.gamma, 1, 8, label="mask rounds", equation="γ in Eq. 6", advanced=True,
    meaning="How often the attention map is normalised and raised to the mask power. More rounds draw a tighter mask.")
ALPHA = Parameter("alpha", "FLOAT", DEFAULT.alpha, 0.5, 8.0, 0.1, label="mask power", equation="α in Eq. 6",
    advanced=True, meaning="The power that the attention map is raised to in each round. Higher draws a tighter mask.")
BETA = Parameter("beta", "FLOAT", DEFAULT.beta, 0.01, 0.99, 0.01, label="mask threshold", equation="β, after Eq. 6",
    advanced=True, meaning="Where the refined map is cut into face and not face. Lower it when the mask misses part of "
    "the face.")
REFINEMENT = Parameter("refinement", "COMBO", DEFAULT.refinement, options=get_args(Refinement), equation="A_s in Eq. 6",
    advanced=True, meaning="Where self-attention spreads the map. outer: once, after all rounds, as printed. inner: in "
    "every round.")
REDUCTION = Parameter("reduction", "COMBO", DEFAULT.reduction, options=get_args(Reduction), equation="S in Eq. 8",
    advanced=True, meaning="Mean or sum of the similarity over the points of the reference. The paper prints the sum, "
    "whose gradient shrinks as the face grows. Mode literal uses the sum.")
GAIN = Parameter("gain", "FLOAT", DEFAULT.gain, 0.0, 100000.0, 1.0, advanced=True,
    meaning="Factor on the gradient, which Eq. 11 does not have. Mode literal uses 1.")
CLIP_GRADIENT = Parameter("clip", "FLOAT", DEFAULT.clip, 0.0, 10.0, 0.01, advanced=True,
    meaning="Cap on the gradient inside the face, as a share of what classifier-free guidance adds there (at cfg 1: of "
    "the noise prediction). 0 is no cap. Mode literal uses 0.")
SIGMA_SCALE = Parameter("sigma_scale", "BOOLEAN", DEFAULT.sigma_scale, advanced=True,
    meaning="Multiply the gradient by sqrt(1 - alpha_bar), which the score has and Eq. 11 leaves out: weaker late "
    "steps. Mode literal leaves it out.")
BACKGROUND_MASKING = Parameter("background_masking", "BOOLEAN", DEFAULT.background_masking, equation="M_gen in Eq. 9",
    advanced=True, meaning="Keep the gradient inside the face. Off is the paper's ablation and changes the whole "
    "picture.")
FEATURE_BLOCK = Parameter("feature_block", "INT", DEFAULT.block, -1, 11, equation="the features F in Eq. 7",
    advanced=True, meaning="Output block of the UNet whose result is the feature. -1 chooses: 5 for SD1.5, 2 for SDXL. "
    "Lower is faster and coarser.")
ENSEMBLE = Parameter("ensemble", "INT", DEFAULT.ensemble, 1, 16, advanced=True,
    meaning="How many noises are averaged for the reference's features. Paid once; the result is cached.")
REFERENCE_SEED = Parameter("reference_seed", "INT", DEFAULT.reference_seed, 0, 0xFFFFFFFF, advanced=True,
    meaning="Seed of the reference's noises. The sampler's noise does not depend on it.")
CHECKPOINTING = Parameter("checkpointing", "COMBO", DEFAULT.checkpointing, options=get_args(Checkpointing),
    advanced=True, meaning="Trade time for memory in the guided pass. auto does so when the pass would take more than "
    "half of the free memory.")
GUIDED_PASS = Parameter("guided_pass", "COMBO", DEFAULT.guided_pass, options=get_args(GuidedPass), optional=True,
    advanced=True, meaning="full: a pass of its own, which leaves the sampler's prediction bit-equal. shared: inside "
    "the sampler's own call, which is faster and equal up to rounding.")
EVERY = Parameter("every", "INT", DEFAULT.every, 1, 10, optional=True, advanced=True,
    meaning="Compute the gradient at every so many noise levels (for most samplers: steps) and hold it in between. 2 "
    "nearly halves the time that guidance takes; 1 is the paper's way, which mode literal uses.")
PRESENCE = Parameter("presence", "FLOAT", DEFAULT.presence, 0.0, 10.0, 0.05, label="face presence", optional=True,
    advanced=True, meaning="How prominent the subject's word must be in the model's attention, against the photograph. "
    "Below that the person is not in the picture and nothing is guided (a tile of background, a hand). Lower it when a "
    "face stays unguided. 0 finds a face in any picture, as Eq. 6 is printed; mode literal uses 0.")
GUIDANCE = (
    STRENGTH, MODE, P, U, T0, GAMMA, ALPHA, BETA, REFINEMENT, REDUCTION, GAIN, CLIP_GRADIENT, SIGMA_SCALE,
    BACKGROUND_MASKING, FEATURE_BLOCK, ENSEMBLE, REFERENCE_SEED, CHECKPOINTING)
LATER = (GUIDED_PASS, EVERY, START_PERCENT, END_PERCENT, CURVE, PRESENCE)
# fmt: on
"""What saved graphs may lack: optional, and last, for the page gives a saved node its values by their place."""


def settings_from(mode: Mode, feature_block: int, **values: object) -> Settings:
    """The inputs of GUIDANCE and LATER as Settings. Raises: ValueError for a choice that is not offered."""
    return Settings(block=feature_block, **values).in_mode(mode)
