"""A pivot encoder in ComfyUI's care: what the PIVOT_ENCODER socket carries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..faces import FaceReference
from . import file as pivot_checkpoint
from .encoder import prepare_face
from .file import PivotHeader

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


@dataclass(frozen=True, eq=False)
class PivotHandle:
    """name: of the file, for messages. patcher: holds the PivotEncoder; ComfyUI moves it between the devices."""

    name: str
    header: PivotHeader
    patcher: ModelPatcher

    def pivot(self, face: FaceReference) -> Callable[[torch.Tensor], torch.Tensor]:
        """The function from e_txt [N, D] to e_mix [N, D] for one person, whose photographs are encoded once; float32 on
        the CPU."""
        reference = self.encode(face)

        def mix(text: torch.Tensor) -> torch.Tensor:
            self._check_width(text.shape[-1])
            encoder = self._loaded()
            rows = reference.expand(text.shape[0], -1)
            return encoder.fuse(rows.to(self.patcher.load_device), text.to(self.patcher.load_device)).cpu()

        return mix

    def encode(self, face: FaceReference) -> torch.Tensor:
        """e_ref of a person, [1, D] float32 on the CPU: of several photographs the fused one.

        ValueError if it is not finite, as half precision may make it.
        """
        encoder = self._loaded()
        size = self.header.config.tower.image_size
        pixels = torch.cat([prepare_face(f.crop, size, f.mask, f.face_box) for f in (face, *face.more)])
        reference = encoder.reference(pixels.to(self.patcher.load_device)).cpu()
        if not torch.isfinite(reference).all():
            raise ValueError(
                f"The pivot encoder {self.name} gave numbers that are not finite for this face: use another encoder "
                "file, or start ComfyUI with --fp32-text-enc."
            )
        return fused(reference)

    def _loaded(self):
        import comfy.model_management

        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        return self.patcher.model

    def _check_width(self, width: int) -> None:
        config = self.header.config
        if width != config.text_width:
            raise ValueError(
                f"The pivot encoder {self.name} was made for {config.family} (text width {config.text_width}), but "
                f"this CLIP's is {width}: choose the encoder and the checkpoint of one family."
            )


def fused(references: torch.Tensor) -> torch.Tensor:
    """One e_ref [1, D] of the K photographs' [K, D]: the mean of their directions, at their mean length.

    So a photograph whose features are large does not outweigh the others, and the fusion sees a length that it knows.
    """
    length = references.norm(dim=1, keepdim=True)
    direction = (references / length.clamp(min=1e-12)).mean(0, keepdim=True)
    mean = direction / direction.norm().clamp(min=1e-12) * length.mean()
    return references if len(references) == 1 else mean


def load_handle(path: str) -> PivotHandle:
    """Read a pivot encoder's file and put it under ComfyUI's model management. ValueError as
    `pivot_checkpoint.load`."""
    import comfy.model_management as management
    from comfy.model_patcher import ModelPatcher

    header = pivot_checkpoint.read_header(path)
    device = management.text_encoder_device()
    encoder, header = pivot_checkpoint.load(path, _compute_dtype(device, header.dtype, management))
    encoder.requires_grad_(False)
    patcher = ModelPatcher(encoder, load_device=device, offload_device=management.text_encoder_offload_device())
    return PivotHandle(Path(path).name, header, patcher)


def _compute_dtype(device: torch.device, stored: torch.dtype, management) -> torch.dtype:
    """float32 on a CPU or with --fp32-text-enc; else the stored half precision where the device has it, or float16."""
    if management.is_device_cpu(device) or management.text_encoder_dtype(device) == torch.float32:
        return torch.float32
    if stored == torch.bfloat16 and management.should_use_bf16(device):
        return torch.bfloat16
    return torch.float16 if management.should_use_fp16(device) else torch.float32
