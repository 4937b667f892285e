"""Every output of every node: its name, ComfyUI's type, what it is. The inputs are in inputs.py."""

from __future__ import annotations

from .ic_inputs import IC_OUTPUTS
from .parameter import Output

# fmt: off
REPORT = (
    Output("face_mask", "MASK", "The face mask of the last guided step (M_gen); empty when none was guided."),
    Output("trace", "IMAGE", "A plot over the timesteps: the similarity S, the gradient's share of the noise "
        "prediction inside the face, and small pictures of the mask."),
    Output("report", "STRING", "How many calls were guided, and why others were not."))

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
        Output("face_mask", "MASK", "The face, at the picture's size: the map cut at the mask threshold."),
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
    "OmniPortraitFaceDetail": (
        Output("image", "IMAGE", "The picture with the face painted anew. Outside of the mask it is unchanged."),
        Output("crop", "IMAGE", "The painted crop by itself."),
        Output("mask", "MASK", "What was painted, at the picture's size."),
        Output("latent", "LATENT", "The crop's latent, for RB-Guidance Report."),
    ),
    "OmniPortraitRBGuidanceReport": (
        Output("latent", "LATENT", "The latent that came in."),
        *REPORT,
    ),
    "OmniPortraitRBGuidanceKSampler": (
        Output("latent", "LATENT", "The denoised latent."),
        *REPORT,
    ),
} | IC_OUTPUTS
# fmt: on
