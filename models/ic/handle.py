"""IC-Portrait's nets in ComfyUI's care: what the IC_PORTRAIT socket carries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import file
from .file import ICHeader
from .nets import Shape

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


@dataclass(frozen=True, eq=False)
class ICHandle:
    """name: of the file, for messages. appearance, matching: hold the nets; ComfyUI moves them between the devices.
    matching is None where the file has none."""

    name: str
    header: ICHeader
    appearance: ModelPatcher
    matching: ModelPatcher | None

    def check(self, unet_config: dict) -> None:
        """ValueError unless the nets are of the shape of this model's UNet."""
        own, model = self.header.shape, Shape.of(unet_config)
        if (own.widths, own.context_dim, own.in_channels) != (model.widths, model.context_dim, model.in_channels):
            raise ValueError(
                f"{self.name} was trained for a model with blocks of {_told(own)}, but this one has {_told(model)}: "
                "choose the file and the checkpoint of one family."
            )


def _told(shape: Shape) -> str:
    widths = ", ".join(map(str, dict.fromkeys(shape.widths)))
    return f"{widths} channels, text of width {shape.context_dim} and {shape.in_channels} channels of latent"


def load_handle(path: str) -> ICHandle:
    """Read a file of nets and put them under ComfyUI's model management. ValueError as `file.load`."""
    import comfy.model_management as management
    from comfy.model_patcher import ModelPatcher

    device, offload = management.get_torch_device(), management.unet_offload_device()
    nets, header = file.load(path, torch.float32 if management.is_device_cpu(device) else None)

    def held(net: torch.nn.Module | None) -> ModelPatcher | None:
        return None if net is None else ModelPatcher(net, load_device=device, offload_device=offload)

    return ICHandle(Path(path).name, header, held(nets.appearance), held(nets.matching))
