"""The hyper-parameters of RB-Guidance as node inputs, shared by the model patch and the sampler."""

from __future__ import annotations

from typing import get_args

from comfy_api.latest import io

from ..guidance.omniportrait.settings import GuidedPass, Settings
from .schema import advanced

DEFAULT = Settings()


def region_inputs() -> list[io.Input]:
    """Eq. 6 and its threshold."""
    return [
        io.Int.Input(
            "gamma",
            default=DEFAULT.gamma,
            min=1,
            max=8,
            tooltip="How often the attention map is normalised and raised to alpha before it becomes the face mask "
            "(Eq. 6). Higher "
            "values draw the mask tighter.",
        ),
        io.Float.Input(
            "alpha",
            default=DEFAULT.alpha,
            min=0.5,
            max=8.0,
            step=0.1,
            tooltip="Power applied to the attention map each time (Eq. 6). Higher values draw the mask tighter.",
        ),
        io.Float.Input(
            "beta",
            default=DEFAULT.beta,
            min=0.01,
            max=0.99,
            step=0.01,
            tooltip="Where the refined map is cut into face and not face. Lower it when the mask misses part of the "
            "face.",
        ),
    ]


def refinement_input() -> io.Input:
    """The open question of Eq. 6."""
    return advanced(
        io.Combo.Input(
            "refinement",
            options=["outer", "inner"],
            default=DEFAULT.refinement,
            tooltip="Where the self-attention acts in Eq. 6: outer = once, after the powers, as the paper prints it; "
            "inner = inside "
            "the loop, each time.",
        )
    )


def strength_inputs() -> list[io.Input]:
    """What people turn."""
    return [
        io.Float.Input(
            "strength",
            default=DEFAULT.strength,
            min=0.0,
            max=10.0,
            step=0.05,
            tooltip="Multiplies the guidance. 0 switches it off: the result is then bit-equal to the plain sampler's.",
        ),
        io.Combo.Input(
            "mode",
            options=["calibrated", "literal"],
            default="calibrated",
            tooltip="calibrated: mean over the matched points, gain and clip as set below, a visible effect. literal: "
            "Eq. 8 to 11 exactly as the paper prints them (sum, no gain, no clip, a gradient at every step), which is "
            "far weaker.",
        ),
    ]


def paper_inputs() -> list[io.Input]:
    """The paper's hyper-parameters, then (advanced) the choices that it leaves open."""
    return [
        io.Float.Input(
            "p",
            default=DEFAULT.p,
            min=0.0,
            max=1000.0,
            step=0.1,
            tooltip="Strength inside the energy E = p / (1 + S) (Eq. 10).",
        ),
        io.Float.Input(
            "u",
            default=DEFAULT.u,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Guide while the timestep is at or below this share of 1000 (Eq. 11): the later, low-noise part "
            "of sampling. 0 "
            "switches the guidance off.",
        ),
        io.Int.Input(
            "t0",
            default=int(DEFAULT.t0),
            min=0,
            max=999,
            tooltip="Timestep to which the reference face is noised before its features are read (Eq. 7).",
        ),
        *region_inputs(),
        refinement_input(),
        *map(advanced, _open_choices()),
    ]


def _open_choices() -> list[io.Input]:
    return [
        io.Combo.Input(
            "reduction",
            options=["mean", "sum"],
            default=DEFAULT.reduction,
            tooltip="Mean or sum of the similarity over the reference's points (Eq. 8). The paper prints the sum, "
            "whose gradient "
            "shrinks as the face grows. Mode literal uses the sum.",
        ),
        io.Float.Input(
            "gain",
            default=DEFAULT.gain,
            min=0.0,
            max=100000.0,
            step=1.0,
            tooltip="Factor on the gradient, which Eq. 11 as printed lacks. Mode literal uses 1.",
        ),
        io.Float.Input(
            "clip",
            default=DEFAULT.clip,
            min=0.0,
            max=10.0,
            step=0.01,
            tooltip="Cap on the gradient inside the face, as a share of what classifier-free guidance adds there. 0 "
            "is no cap. Mode "
            "literal uses 0.",
        ),
        io.Boolean.Input(
            "sigma_scale",
            default=DEFAULT.sigma_scale,
            tooltip="Multiply the gradient by sqrt(1 - alpha_bar), which the score identity has and Eq. 11 drops: "
            "weaker late steps.",
        ),
        io.Boolean.Input(
            "background_masking",
            default=DEFAULT.background_masking,
            tooltip="Keep the gradient inside the face (Eq. 9). Off is the paper's ablation: it also changes the "
            "background.",
        ),
        io.Int.Input(
            "feature_block",
            default=DEFAULT.block,
            min=-1,
            max=11,
            tooltip="Output block of the UNet whose result is the feature. -1 chooses: 5 for SD1.5, 2 for SDXL. Lower "
            "is faster and "
            "coarser.",
        ),
        io.Int.Input(
            "ensemble",
            default=DEFAULT.ensemble,
            min=1,
            max=16,
            tooltip="How many noises are averaged for the reference's features. Paid once; the result is cached.",
        ),
        io.Int.Input(
            "reference_seed",
            default=DEFAULT.reference_seed,
            min=0,
            max=0xFFFFFFFF,
            tooltip="Seed of the reference's noises. It does not touch the sampler's noise.",
        ),
        io.Combo.Input(
            "checkpointing",
            options=["auto", "on", "off"],
            default=DEFAULT.checkpointing,
            tooltip="Trade time for memory in the guided pass. auto switches it on when memory is short.",
        ),
    ]


def cost_inputs() -> list[io.Input]:
    """What trades time for likeness. Optional: graphs and API calls from before these inputs still run."""
    return [
        advanced(
            io.Combo.Input(
                "guided_pass",
                options=list(get_args(GuidedPass)),
                default=DEFAULT.guided_pass,
                optional=True,
                tooltip="Where the gradient is computed. full: in a pass of its own beside the sampler's call, whose "
                "prediction stays bit-equal. shared: inside the sampler's call: faster, equal up to rounding.",
            )
        ),
        advanced(
            io.Int.Input(
                "every",
                default=DEFAULT.every,
                min=1,
                max=10,
                optional=True,
                tooltip="Make the gradient at every so many noise levels, which most samplers' steps are, and hold it "
                "in between. 2 nearly halves the time that guiding takes. 1 is the paper's way, and what mode literal "
                "uses.",
            )
        ),
    ]


def settings_from(mode: str, feature_block: int, **values: object) -> Settings:
    """Node inputs to Settings."""
    return Settings(block=feature_block, **values).in_mode(mode)
