"""The nodes, one a file. `extension()` is what ComfyUI's V3 loader gets."""

from __future__ import annotations

import os

MODEL_FOLDERS = {
    "pivot_encoders": {".safetensors"},
    "face_embedders": {".onnx", ".safetensors"},
    "omniportrait_identities": {".safetensors"},
    "ic_portrait": {".safetensors"},
}
"""Our folders in ComfyUI's `models`, and the files in them."""


def register_model_folders() -> None:
    """Tell ComfyUI about MODEL_FOLDERS, keeping places that extra_model_paths.yaml has already named.

    The extension set is given explicitly: an unknown folder name would otherwise list every file.
    """
    import folder_paths

    for name, endings in MODEL_FOLDERS.items():
        default = os.path.join(folder_paths.models_dir, name)
        known, _ = folder_paths.folder_names_and_paths.get(name, ([], set()))
        folders = [*known] if default in known else [*known, default]
        folder_paths.folder_names_and_paths[name] = (folders, endings)


def extension():
    """The pack's ComfyExtension."""
    from comfy_api.latest import ComfyExtension

    from .best_of_batch import BestOfBatch
    from .face_detail import FaceDetail
    from .face_mask_from_attention import FaceMaskFromAttention
    from .face_reference import FaceReferenceNode
    from .fine_control_map import FineControlMap
    from .ic_conditioning import ICConditioning
    from .ic_flow import ICFlow
    from .ic_portrait import ICPortrait
    from .ic_portrait_loader import ICPortraitLoader
    from .ic_portrait_sampler import ICPortraitSampler
    from .identity_score import IdentityScore
    from .load_identity import LoadIdentity
    from .paste_back import PasteBack
    from .pivot_conditioning import PivotConditioning
    from .pivot_encoder_loader import PivotEncoderLoader
    from .rb_guidance import RBGuidance
    from .rb_guidance_ksampler import RBGuidanceKSampler
    from .rb_guidance_report import RBGuidanceReport
    from .reference_attention import ReferenceAttention
    from .save_identity import SaveIdentity

    class OmniPortraitExtension(ComfyExtension):
        async def get_node_list(self) -> list[type]:
            return [
                PivotEncoderLoader,
                FaceReferenceNode,
                SaveIdentity,
                LoadIdentity,
                PivotConditioning,
                FaceMaskFromAttention,
                ReferenceAttention,
                RBGuidance,
                RBGuidanceKSampler,
                IdentityScore,
                BestOfBatch,
                ICPortraitLoader,
                ICPortrait,
                ICConditioning,
                ICPortraitSampler,
                ICFlow,
                PasteBack,
                FineControlMap,
                RBGuidanceReport,
                FaceDetail,
            ]

    return OmniPortraitExtension()
