"""Every input of every node: its name, what it takes, what it does. The outputs are in outputs.py.

Each parameter is explained here and nowhere else. schema.py turns the rows into ComfyUI's inputs; `python run.py make
help-pages` turns them into the lists of web/docs and the texts of locales/.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import get_args

from ..guidance.reference_attention.settings import Levels, Where
from ..guidance.reference_attention.settings import Settings as AttentionSettings
from ..guidance.spf_portrait.settings import ControlMap, Distance, Reading
from ..models.faces.build import MASK_SOURCES, MAX_CROP_FACTOR, NO_FACE_POLICIES
from ..models.faces.detector import DETECTORS, ORDERS
from ..models.faces.likeness import CHOICES
from ..models.faces.recogniser import BUILT_IN
from ..models.pivot.handle import Photographs
from ..sampling.detail import NO_FACE
from .files import names_in
from .guidance_inputs import ALPHA, BETA, GAMMA, GUIDANCE, LATER, PRESENCE, REFERENCE_SEED, REFINEMENT
from .ic_inputs import IC_INPUTS
from .parameter import Parameter

SEEN = AttentionSettings()
CONTROL = ControlMap()
LARGEST_SEED = 0xFFFFFFFFFFFFFFFF


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
STEPS = Parameter("steps", "INT", 30, 1, 10000, meaning="Sampling steps. The paper uses 50, with DDIM.")
CFG = Parameter("cfg", "FLOAT", 7.5, 0.0, 100.0, 0.1, more={"round": 0.01},
    meaning="Classifier-free guidance scale. The paper uses 7.5.")
SAMPLER = Parameter("sampler_name", "COMBO", "ddim", options=_samplers, choices="as in KSampler",
    meaning="The sampling algorithm. All of KSampler's work with the guidance.")
SCHEDULER = Parameter("scheduler", "COMBO", "normal", options=_schedulers, choices="as in KSampler",
    meaning="The noise schedule, as in KSampler.")
POSITIVE = Parameter("positive", "CONDITIONING",
    meaning="From Pivot Conditioning, which marks the word that is the person.")
NEGATIVE = Parameter("negative", "CONDITIONING", meaning="What the picture should not show.")
SEED = Parameter("seed", "INT", 0, 0, LARGEST_SEED, more={"control_after_generate": True})

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
        replace(PRESENCE, default=SEEN.presence,
            meaning="Of own face: how prominent the subject's word must be in the model's attention, against the "
            "photograph. Below that the person is not in the picture and nothing of it sees the reference (a tile of "
            "background, a hand). Lower it when a face stays without. 0 finds a face in any picture."),
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
        *LATER,
    ),
    "OmniPortraitFaceDetail": (
        Parameter("model", "MODEL", meaning="The model that paints the face: usually with Reference Attention or "
            "RB-Guidance. It is not changed."),
        Parameter("vae", "VAE", meaning="The VAE of the model's checkpoint."),
        POSITIVE,
        NEGATIVE,
        Parameter("image", "IMAGE", meaning="The existing picture. Of a batch, each picture is done by itself."),
        Parameter("side", "INT", 512, 256, 2048, 64, meaning="Side of the crop while it is painted, in pixels: 512 for "
            "SD1.5, 1024 for SDXL."),
        Parameter("denoise", "FLOAT", 0.4, 0.0, 1.0, 0.01, meaning="How much of the face is painted anew. Low keeps "
            "its pose and light, high takes more of the person."),
        replace(SEED, meaning="Seed of the noise, as in KSampler."),
        replace(STEPS, default=20, meaning="Sampling steps, as in KSampler."),
        replace(CFG, default=7.0, meaning="Classifier-free guidance scale, as in KSampler."),
        replace(SAMPLER, default="dpmpp_2m", meaning="The sampling algorithm, as in KSampler."),
        replace(SCHEDULER, default="karras"),
        Parameter("order", "COMBO", ORDERS[0], options=ORDERS,
            meaning="How the faces of the picture are sorted before index picks one."),
        Parameter("index", "INT", 0, 0, 99, meaning="Which face to paint, in that order. 0 is the first. For several "
            "faces chain several of these nodes."),
        Parameter("no_face", "COMBO", NO_FACE[0], options=NO_FACE,
            meaning="What to do where no face is certain: stop with an error, or give the picture out as it was."),
        Parameter("crop_factor", "FLOAT", 2.0, 1.0, float(MAX_CROP_FACTOR), 0.1, advanced=True,
            meaning="Side of the crop, in multiples of the longer side of the face's box."),
        Parameter("grow", "FLOAT", 0.05, 0.0, 0.5, 0.01, advanced=True,
            meaning="How far the face's mask is widened before it is painted, as a share of the crop."),
        Parameter("feather", "FLOAT", 0.05, 0.0, 0.5, 0.01, advanced=True,
            meaning="How softly the painted face ends, as a share of the crop."),
        Parameter("detector", "COMBO", DETECTORS[0], options=DETECTORS, advanced=True,
            meaning="auto: facexlib if its files are in models/facexlib, else the built-in MTCNN. Nothing is "
            "downloaded."),
    ),
    "OmniPortraitRBGuidanceReport": (
        Parameter("model", "MODEL", meaning="The model from RB-Guidance, as it goes into the sampler."),
        Parameter("latent", "LATENT", meaning="The latent from the sampler. It goes through unchanged."),
    ),
    "OmniPortraitRBGuidanceKSampler": (
        MODEL,
        VAE,
        replace(SEED, meaning="Seed of the noise, as in KSampler."),
        STEPS,
        CFG,
        SAMPLER,
        SCHEDULER,
        POSITIVE,
        NEGATIVE,
        Parameter("latent_image", "LATENT", meaning="The latent to denoise. An empty one gives a new picture."),
        Parameter("denoise", "FLOAT", 1.0, 0.0, 1.0, 0.01,
            meaning="Below 1, part of the latent's own structure is kept, as in KSampler."),
        *GUIDANCE,
        *LATER,
    ),
} | IC_INPUTS
# fmt: on
