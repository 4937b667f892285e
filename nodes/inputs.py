"""Every input and output of every node: its name, what it takes, what it does.

Each parameter is explained here and nowhere else. schema.py turns the rows into ComfyUI's inputs; `python run.py make
help-pages` turns them into the tables of web/docs and the labels of locales/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import get_args

from ..guidance.omniportrait.settings import (
    Checkpointing,
    GuidedPass,
    Mode,
    Reduction,
    Refinement,
    Settings,
)
from ..guidance.reference_attention.settings import Levels, Where
from ..guidance.reference_attention.settings import Settings as AttentionSettings
from ..guidance.spf_portrait.settings import ControlMap, Distance, Reading
from ..models.faces.build import MASK_SOURCES, MAX_CROP_FACTOR, NO_FACE_POLICIES
from ..models.faces.detector import DETECTORS, ORDERS
from ..models.faces.likeness import CHOICES
from ..models.faces.recogniser import BUILT_IN
from ..models.pivot.handle import Photographs
from .files import names_in

DEFAULT = Settings()
SEEN = AttentionSettings()
CONTROL = ControlMap()
LARGEST_SEED = 0xFFFFFFFFFFFFFFFF


@dataclass(frozen=True)
class Parameter:
    """One input of a node.

    name: never changes, because saved graphs hold it. kind: ComfyUI's type. default, low, high, step: of a widget.
    meaning: the tooltip and the help page's text. options: of a COMBO; a function where only ComfyUI knows them, and
    `choices` then says what they are. equation: symbol and equation of the paper. label: shown instead of the name.
    advanced: folded away. optional: may be left out. more: further arguments of ComfyUI's input.
    """

    name: str
    kind: str
    default: object = None
    low: float | None = None
    high: float | None = None
    step: float | None = None
    meaning: str = ""
    options: tuple[str, ...] | Callable[[], list[str]] = ()
    choices: str = ""
    equation: str = ""
    label: str = ""
    advanced: bool = False
    optional: bool = False
    more: Mapping[str, object] = field(default_factory=dict)

    @property
    def tooltip(self) -> str:
        """The meaning, and where the paper has it."""
        return f"{self.meaning} Paper: {self.equation}." if self.equation else self.meaning


@dataclass(frozen=True)
class Output:
    """One output of a node: its name, ComfyUI's type, and the tooltip that the help page repeats."""

    name: str
    kind: str
    meaning: str


def _face_embedders() -> list[str]:
    return [BUILT_IN, *names_in("face_embedders")]


def _samplers() -> list[str]:
    import comfy.samplers

    return comfy.samplers.KSampler.SAMPLERS


def _schedulers() -> list[str]:
    import comfy.samplers

    return comfy.samplers.KSampler.SCHEDULERS


# fmt: off
# One row a parameter: name, type, default, lowest, highest, step.
MODEL = Parameter("model", "MODEL", meaning="A Stable Diffusion 1.x, 2.x or SDXL model. It is not changed.")
VAE = Parameter("vae", "VAE", meaning="The VAE of the model's checkpoint. It encodes the reference face, once.")
SEED = Parameter("seed", "INT", 0, 0, LARGEST_SEED, more={"control_after_generate": True})

STRENGTH = Parameter("strength", "FLOAT", DEFAULT.strength, 0.0, 10.0, 0.05,
    meaning="How strong the guidance is. 0 switches it off: the picture is then bit-equal to the plain sampler's.")
MODE = Parameter("mode", "COMBO", "calibrated", options=get_args(Mode),
    meaning="calibrated: with the gain and clip set below, for a visible effect. literal: Eq. 8 to 11 exactly as "
    "printed (sum, no gain, no clip, a gradient at every step), which is next to invisible.")
P = Parameter("p", "FLOAT", DEFAULT.p, 0.0, 1000.0, 0.1, label="energy strength", equation="p in Eq. 10", advanced=True,
    meaning="Factor in the energy E = p / (1 + S), where S is the similarity to the reference.")
U = Parameter("u", "FLOAT", DEFAULT.u, 0.0, 1.0, 0.01, label="guided share", equation="u in Eq. 11", advanced=True,
    meaning="Share of the timesteps that is guided, counted from the finished picture: 0.6 starts at t = 600. "
    "0 switches the guidance off.")
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
GUIDANCE = (
    STRENGTH, MODE, P, U, T0, GAMMA, ALPHA, BETA, REFINEMENT, REDUCTION, GAIN, CLIP_GRADIENT, SIGMA_SCALE,
    BACKGROUND_MASKING, FEATURE_BLOCK, ENSEMBLE, REFERENCE_SEED, CHECKPOINTING)
COST = (GUIDED_PASS, EVERY)
ATTENTION = (
    Parameter("strength", "FLOAT", SEEN.strength, 0.0, 10.0, 0.05,
        meaning="How often the reference's tokens count beside the picture's own: 1 once, 2 twice. 0 switches it off: "
        "the picture is then bit-equal to the plain sampler's."),
    Parameter("start_percent", "FLOAT", SEEN.start_percent, 0.0, 1.0, 0.01, meaning="Where in the sampling it starts."),
    Parameter("end_percent", "FLOAT", SEEN.end_percent, 0.0, 1.0, 0.01, meaning="Where in the sampling it ends."),
    Parameter("where", "COMBO", SEEN.where, options=get_args(Where),
        meaning="Which part of the picture sees the reference. own face: where the subject's word looks, from the "
        "second step on; people without regions are always kept apart so. region: the region of Pivot Conditioning."),
    Parameter("levels", "COMBO", SEEN.levels, options=get_args(Levels), advanced=True,
        meaning="At which resolutions of the UNet. The finest with self-attention carries most of the likeness."),
    Parameter("balance", "BOOLEAN", SEEN.balance, advanced=True,
        meaning="Show the reference to the unconditional prediction as well, which weakens the effect."),
    REFERENCE_SEED)
REFERENCE_FACE = Parameter("face_reference", "FACE_REFERENCE",
    meaning="The person, from Face Reference. Of several photographs the mean counts.")
JUDGING = (
    Parameter("embedder", "COMBO", BUILT_IN, options=_face_embedders, choices="built-in, and the files found",
        meaning="What compares the faces. built-in: dlib's network, by distance; nothing to download. Files in "
        "models/face_embedders, by cosine: FaceNet (.safetensors), or an ONNX file such as AuraFace, which needs "
        "onnxruntime."),
    Parameter("threshold", "FLOAT", 0.0, -1.0, 2.0, 0.01,
        meaning="From where two faces count as the same person. 0 is the embedder's own: a distance of at most 0.6 "
        "(built-in), a cosine of at least 0.379 (FaceNet) or 0.28 (ONNX)."),
    Parameter("face", "COMBO", CHOICES[0], options=CHOICES, advanced=True,
        meaning="Which face counts where a picture shows several."))

INPUTS: dict[str, tuple[Parameter, ...]] = {
    "OmniPortraitPivotEncoderLoader": (
        Parameter("pivot_encoder_name", "COMBO", options=partial(names_in, "pivot_encoders"), choices="the files found",
            meaning="A .safetensors file in models/pivot_encoders, for your checkpoint's family. Press R after adding "
            "one."),
    ),
    "OmniPortraitFaceReference": (
        Parameter("image", "IMAGE", meaning="A photograph of the person, the face upright and clearly visible, at "
            "least 32 pixels on each side. A batch is several photographs of one person; a list is several people. "
            "Transparency is laid over grey."),
        Parameter("order", "COMBO", ORDERS[0], options=ORDERS,
            meaning="How the faces are sorted before index picks one. The overview output numbers them. Doubtful finds "
            "come last."),
        Parameter("index", "INT", 0, 0, 99, meaning="Which face to take, in that order. 0 is the first."),
        Parameter("crop_factor", "FLOAT", 2.0, 1.0, float(MAX_CROP_FACTOR), 0.1,
            meaning="Side of the square crop, in multiples of the longer side of the face's box. 2 leaves room for "
            "hair and chin. Beyond the photograph's border its edge is repeated."),
        Parameter("no_face", "COMBO", NO_FACE_POLICIES[0], options=NO_FACE_POLICIES,
            meaning="What to do when no face is certain and no mask is connected: stop with an error, use "
            "the whole image, or skip that photograph of a list or batch."),
        Parameter("mask_source", "COMBO", MASK_SOURCES[0], options=MASK_SOURCES, advanced=True,
            meaning="Where the face mask comes from. auto: facexlib's parser if its file is installed, else landmarks. "
            "landmarks: an oval fitted to eyes, nose and mouth. attention: no mask; the diffusion model's own "
            "attention finds the face. whole crop: everything. A connected mask takes precedence."),
        Parameter("detector", "COMBO", DETECTORS[0], options=DETECTORS, advanced=True,
            meaning="auto: facexlib if its files are in models/facexlib, else the built-in MTCNN. Nothing is "
            "downloaded."),
        Parameter("mask", "MASK", optional=True,
            meaning="Your own mask of the face, drawn over the photograph; any size. It picks the face that it covers, "
            "replaces the automatic mask, and is cropped around when no face is found; where faces are found and it "
            "covers none, the node stops. An empty mask is ignored."),
    ),
    "OmniPortraitSaveIdentity": (
        Parameter("face_reference", "FACE_REFERENCE", meaning="The person's face, from Face Reference."),
        Parameter("name", "STRING", "person",
            meaning="The file's name in models/omniportrait_identities; a / makes a subfolder, as in family/anna."),
        Parameter("overwrite", "BOOLEAN", False,
            meaning="What to do where the name is taken by another person. Off: the new file gets a number, as in "
            "person_00002. On: the old file is replaced."),
        Parameter("pivot_encoder", "PIVOT_ENCODER", optional=True,
            meaning="Its embeddings of the photographs are kept, too, so that this encoder need not look again."),
    ),
    "OmniPortraitLoadIdentity": (
        Parameter("identity_name", "COMBO", options=partial(names_in, "omniportrait_identities"),
            choices="the files found",
            meaning="A file of Save Identity in models/omniportrait_identities. Press R after adding one."),
    ),
    "OmniPortraitPivotConditioning": (
        Parameter("clip", "CLIP", meaning="The checkpoint's text encoder: CLIP of SD1.x, SD2.x or SDXL."),
        Parameter("face_reference", "FACE_REFERENCE",
            meaning="The person's face, from Face Reference or Load Identity."),
        Parameter("text", "STRING", "a photo of a woman in a garden",
            more={"multiline": True, "dynamic_prompts": True},
            meaning="The prompt. With a base conditioning: the same text as in the node that made it."),
        Parameter("subject", "STRING", "woman",
            meaning='The word of the prompt that names this person, or several in a row, such as "young woman".'),
        Parameter("occurrence", "INT", 1, 1, 999,
            meaning="If the prompt holds the subject more than once: which one it is. 1 is the first."),
        Parameter("strength", "FLOAT", 1.0, 0.0, 2.0, 0.05,
            meaning="From the plain word (0) to the pivot (1), and beyond. No effect without a pivot encoder."),
        Parameter("pivot_encoder", "PIVOT_ENCODER", optional=True,
            meaning="A trained pivot encoder. Without one the word is marked but keeps its own embedding."),
        Parameter("base_conditioning", "CONDITIONING", optional=True,
            meaning="Marked instead of encoding the prompt: another person's Pivot Conditioning, or PhotoMaker "
            "Encode."),
        Parameter("region", "MASK", optional=True, advanced=True,
            meaning="Limits this person to the white part of a mask of any size; of a batch, to the union."),
        Parameter("combine_photographs", "COMBO", "norm mean", options=get_args(Photographs), optional=True,
            advanced=True, meaning="How the encoder's embeddings of several photographs become one. norm mean: the "
            "mean of their directions at their mean length. mean: their plain mean. No effect with one photograph."),
    ),
    "OmniPortraitFaceMaskFromAttention": (
        MODEL,
        Parameter("conditioning", "CONDITIONING",
            meaning="From Pivot Conditioning, which marks the word that is the person."),
        Parameter("latent", "LATENT",
            meaning="The latent to look at: a finished picture (VAE Encode takes photographs) or an unfinished one."),
        replace(SEED, meaning="Seed of the noise that is added before the model looks."),
        Parameter("percent", "FLOAT", 0.4, 0.0, 1.0, 0.01,
            meaning="How far into sampling to look: 0 is pure noise, 1 the finished picture. 0.4 is t = 600, where "
            "RB-Guidance starts by default."),
        *(replace(row, advanced=False) for row in (GAMMA, ALPHA, BETA)),
        Parameter("person", "INT", 0, 0, 64,
            meaning="Which person of a chain of Pivot Conditioning nodes. 1 is the first, 0 is everyone."),
        REFINEMENT,
        Parameter("sigma", "FLOAT", 0.0, 0.0, 1000.0, 0.001, advanced=True,
            meaning="Look at exactly this sigma instead of at percent. 0 uses percent."),
    ),
    "OmniPortraitFineControlMap": (
        replace(MODEL, meaning="The original: a Stable Diffusion 1.x, 2.x or SDXL model. It reads the base text."),
        Parameter("clip", "CLIP", meaning="The CLIP of the checkpoint."),
        Parameter("base_text", "STRING", "a woman in a red coat in a park", more={"multiline": True},
            meaning="What the picture shows without the attribute. Brackets are plain characters here."),
        Parameter("target_text", "STRING", "wearing a hat",
            meaning="The attribute. It is put behind the base text, after a comma."),
        Parameter("latent", "LATENT",
            meaning="The picture to look at: a finished one (VAE Encode takes photographs) or an unfinished one."),
        replace(SEED, meaning="Seed of the noise that is added before the models look."),
        Parameter("percent", "FLOAT", 0.6, 0.0, 1.0, 0.01,
            meaning="How far into sampling to look: 0 is pure noise, 1 the finished picture. 0.3 to 0.9 find the "
            "attribute about equally well; take 0.1 for an empty latent."),
        Parameter("looks", "INT", 3, 1, 8,
            meaning="Noise levels around percent of which the mean is taken. Each costs one call of both models."),
        Parameter("gain", "FLOAT", CONTROL.gain, 0.5, 10.0, 0.1, equation="gain in Eq. 9",
            meaning="Factor of what is left after the subtraction. Higher fills the attribute, and lets in more of its "
            "surroundings."),
        Parameter("subtract", "FLOAT", CONTROL.subtract, 0.0, 2.0, 0.05, equation="D_p in Eq. 8",
            meaning="How much of the base text's phrases is taken away. 0 is the bare noise difference."),
        Parameter("tuned_model", "MODEL", optional=True,
            meaning="The same checkpoint through Load LoRA. It reads the base text with the target. Without it the map "
            "shows what the original itself does with the target."),
        Parameter("image", "IMAGE", optional=True, meaning="What the overlay is drawn on; without it, black."),
        Parameter("blur", "INT", CONTROL.blur, 1, 15, 2, advanced=True, equation="blur in Eq. 7",
            meaning="Side of the mean filter over the noise difference, in latent cells of 8 pixels. Odd."),
        Parameter("distance", "COMBO", CONTROL.distance, options=get_args(Distance), advanced=True,
            equation="D_p in Eq. 8",
            meaning="How far a phrase is from the target. states: by the text encoder. constant: 0.5 for each, for "
            "small text encoders, which know too few words."),
        Parameter("reading", "COMBO", CONTROL.reading, options=get_args(Reading), advanced=True,
            meaning="measured: a phrase's share of the attention as it is, and the gain. literal: each phrase's map "
            "stretched to 0..1 and no gain, as the figure seems to say; it can take everything away."),
        Parameter("phrases", "STRING", "", advanced=True, more={"multiline": True},
            meaning="Phrases of the base text, one a line, each as it stands there. Empty: they are found."),
    ),
    "OmniPortraitIdentityScore": (
        Parameter("image", "IMAGE", meaning="The pictures to judge, one or a batch."),
        REFERENCE_FACE,
        *JUDGING,
    ),
    "OmniPortraitBestOfBatch": (
        Parameter("image", "IMAGE", meaning="The batch of pictures to choose from."),
        REFERENCE_FACE,
        Parameter("keep", "INT", 1, 1, 4096, meaning="How many of the pictures to keep."),
        *JUDGING,
    ),
    "OmniPortraitReferenceAttention": (
        MODEL,
        VAE,
        *ATTENTION,
        Parameter("face_reference", "FACE_REFERENCE", optional=True,
            meaning="Only if the sampler's conditioning does not come from Pivot Conditioning: the face to bring in."),
    ),
    "OmniPortraitRBGuidance": (
        MODEL,
        VAE,
        *GUIDANCE,
        Parameter("face_reference", "FACE_REFERENCE", optional=True,
            meaning="Only if the sampler's conditioning does not come from Pivot Conditioning: the face to bring in. "
            "Needs mask as well."),
        Parameter("mask", "MASK", optional=True,
            meaning="Only together with face_reference: where the face will be in the new picture."),
        *COST,
    ),
    "OmniPortraitRBGuidanceKSampler": (
        MODEL,
        VAE,
        replace(SEED, meaning="Seed of the noise, as in KSampler."),
        Parameter("steps", "INT", 30, 1, 10000, meaning="Sampling steps. The paper uses 50, with DDIM."),
        Parameter("cfg", "FLOAT", 7.5, 0.0, 100.0, 0.1, more={"round": 0.01},
            meaning="Classifier-free guidance scale. The paper uses 7.5."),
        Parameter("sampler_name", "COMBO", "ddim", options=_samplers, choices="as in KSampler",
            meaning="The sampling algorithm. All of KSampler's work with the guidance."),
        Parameter("scheduler", "COMBO", "normal", options=_schedulers, choices="as in KSampler",
            meaning="The noise schedule, as in KSampler."),
        Parameter("positive", "CONDITIONING",
            meaning="From Pivot Conditioning, which marks the word that is the person."),
        Parameter("negative", "CONDITIONING", meaning="What the picture should not show."),
        Parameter("latent_image", "LATENT", meaning="The latent to denoise. An empty one gives a new picture."),
        Parameter("denoise", "FLOAT", 1.0, 0.0, 1.0, 0.01,
            meaning="Below 1, part of the latent's own structure is kept, as in KSampler."),
        *GUIDANCE,
        *COST,
    ),
}

OUTPUTS: dict[str, tuple[Output, ...]] = {
    "OmniPortraitPivotEncoderLoader": (
        Output("pivot_encoder", "PIVOT_ENCODER", "The encoder, for Pivot Conditioning."),
    ),
    "OmniPortraitFaceReference": (
        Output("face_reference", "FACE_REFERENCE", "The face, for Pivot Conditioning or RB-Guidance."),
        Output("crop", "IMAGE", "The square crop that is used, 256 to 1024 pixels on a side."),
        Output("face_mask", "MASK", "The face inside the crop. All white when it is left to the model's attention."),
        Output("overview", "IMAGE", "The photograph with every face numbered in the chosen order: the one that is used "
            "in green, its crop in blue, the others in yellow, doubtful ones in red. Says when the photograph was "
            "turned."),
        Output("photo_mask", "MASK", "The face mask at the photograph's size, as the photograph was connected."),
        Output("face_box", "BBOX", "x, y, width and height of the face in the photograph, one for each photograph."),
    ),
    "OmniPortraitSaveIdentity": (
        Output("face_reference", "FACE_REFERENCE", "The same person, with the embeddings if there are any."),
    ),
    "OmniPortraitLoadIdentity": (
        Output("face_reference", "FACE_REFERENCE", "The face, for Pivot Conditioning or RB-Guidance."),
        Output("crop", "IMAGE", "The crops of the person's photographs."),
        Output("face_mask", "MASK", "The face inside each crop. All white when it is left to the model's attention."),
    ),
    "OmniPortraitPivotConditioning": (
        Output("conditioning", "CONDITIONING", "The prompt with the person in it, for the sampler or the next person."),
    ),
    "OmniPortraitFaceMaskFromAttention": (
        Output("mask", "MASK", "The face, at the picture's size: the map cut at the mask threshold."),
        Output("heat_map", "IMAGE", "The refined map of Eq. 6, bright where the model looks."),
    ),
    "OmniPortraitFineControlMap": (
        Output("mask", "MASK", "The control map S at the picture's size: soft, 1 where the target changes it."),
        Output("overlay", "IMAGE", "The map over the image, bright where it is high."),
        Output("parts", "IMAGE", "What the map is made of, side by side: the noise difference, each phrase's map with "
            "its distance from the target, and the result."),
    ),
    "OmniPortraitIdentityScore": (
        Output("score", "FLOAT", "Distance (lower is nearer) or cosine (higher is nearer) of each picture. Without a "
            "face: infinity, or -1."),
        Output("same_person", "BOOLEAN", "For each picture, whether it passes the threshold. Without a face: no."),
        Output("comparison", "IMAGE", "Both faces side by side with the result, one picture for each."),
        Output("report", "STRING", "A line for each picture."),
    ),
    "OmniPortraitBestOfBatch": (
        Output("best", "IMAGE", "The pictures that are kept, the most alike first."),
        Output("sorted", "IMAGE", "All pictures, the most alike first; those without a face come last."),
        Output("comparison", "IMAGE", "Both faces side by side with the result, in the sorted order."),
        Output("report", "STRING", "Which picture came where, and why."),
    ),
    "OmniPortraitReferenceAttention": (
        Output("model", "MODEL", "The model that sees the reference, for any sampler or RB-Guidance."),
    ),
    "OmniPortraitRBGuidance": (
        Output("model", "MODEL", "The model with RB-Guidance, for any sampler."),
    ),
    "OmniPortraitRBGuidanceKSampler": (
        Output("latent", "LATENT", "The denoised latent."),
        Output("face_mask", "MASK", "The face mask of the last guided step (M_gen); empty when none was guided."),
        Output("trace", "IMAGE", "A plot over the timesteps: the similarity S, the gradient's share of the noise "
            "prediction inside the face, and small pictures of the mask."),
    ),
}
# fmt: on


def settings_from(mode: Mode, feature_block: int, **values: object) -> Settings:
    """The inputs of GUIDANCE and COST as Settings. Raises: ValueError for a choice that is not offered."""
    return Settings(block=feature_block, **values).in_mode(mode)
