"""A pivot encoder in ComfyUI's care: what the PIVOT_ENCODER socket carries."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from ..faces import FaceReference
from . import file as pivot_checkpoint
from .encoder import prepare_face
from .file import PivotHeader

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

Photographs = Literal["norm mean", "mean"]
"""How the embeddings of several photographs of a person become one."""


@dataclass(frozen=True, eq=False)
class PivotHandle:
    """name: of the file, for messages. patcher: holds the PivotEncoder; ComfyUI moves it between the devices."""

    name: str
    header: PivotHeader
    patcher: ModelPatcher

    def pivot(
        self, face: FaceReference, photographs: Photographs = "norm mean"
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """The function from e_txt [N, D] to e_mix [N, D] for one person, whose photographs are encoded once; float32 on
        the CPU."""
        reference = fused(self.encode(face), photographs)

        def mix(text: torch.Tensor) -> torch.Tensor:
            self._check_width(text.shape[-1])
            encoder = self._loaded()
            rows = reference.expand(text.shape[0], -1)
            return encoder.fuse(rows.to(self.patcher.load_device), text.to(self.patcher.load_device)).cpu()

        return mix

    def encode(self, face: FaceReference) -> torch.Tensor:
        """e_ref of a person's photographs, [K, D] float32 on the CPU; as stored in them where this encoder made it.

        ValueError if it is not finite, as half precision may make it.
        """
        if all(each.embeddings and self.key in each.embeddings for each in face.photographs):
            return torch.stack([each.embeddings[self.key] for each in face.photographs])
        encoder = self._loaded()
        size = self.header.config.tower.image_size
        pixels = torch.cat([prepare_face(each.crop, size, each.mask, each.face_box) for each in face.photographs])
        reference = encoder.reference(pixels.to(self.patcher.load_device)).cpu()
        if not torch.isfinite(reference).all():
            raise ValueError(
                f"The pivot encoder {self.name} gave numbers that are not finite for this face: use another encoder "
                "file, or start ComfyUI with --fp32-text-enc."
            )
        return reference

    def remembered(self, face: FaceReference) -> FaceReference:
        """The same person with e_ref in each photograph."""
        stored = [
            replace(each, more=(), embeddings={**each.embeddings, self.key: reference.clone()})
            for each, reference in zip(face.photographs, self.encode(face), strict=True)
        ]
        return replace(stored[0], more=tuple(stored[1:]))

    @cached_property
    def key(self) -> str:
        """Digest of the weights that make e_ref, in the precision in which they compute here."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.patcher.model.state_dict().items()):
            if not name.startswith("fusion."):
                digest.update(repr((name, weight.dtype, tuple(weight.shape))).encode())
                digest.update(weight.detach().cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

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


def fused(references: torch.Tensor, photographs: Photographs = "norm mean") -> torch.Tensor:
    """One e_ref [1, D] of the K photographs' [K, D].

    norm mean: the mean of their directions, at their mean length, so that a photograph whose features are large does
    not outweigh the others, and the fusion sees a length that it knows. mean: their plain mean, which is shorter the
    less they agree. There is no concatenation: the pivot takes one row of the text.
    Raises: ValueError for another choice, which ComfyUI 0.3.75 lets through.
    """
    if photographs not in get_args(Photographs):
        raise ValueError(f"Pivot Conditioning cannot fuse photographs by {photographs!r}; choose norm mean or mean.")
    if len(references) == 1:
        return references
    if photographs == "mean":
        return references.mean(0, keepdim=True)
    length = references.norm(dim=1, keepdim=True)
    direction = (references / length.clamp(min=1e-12)).mean(0, keepdim=True)
    return direction / direction.norm().clamp(min=1e-12) * length.mean()


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
