"""The family of Stable Diffusion 1.x, 2.x and SDXL: every fact about ComfyUI's UNetModel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .attention import AttentionSites, BlockKey

MEMORY_SHARE = 0.5
"""Checkpointing starts when a pass would take more than this share of the free memory."""
CROSS_SIDE = 16
"""Side of the cross-attention maps in the paper, in tokens."""
SELF_SIDE = 32
"""Side at which self-attention still sees a face that covers a tenth of the picture."""


@dataclass(frozen=True)
class Site:
    """One transformer block of a UNet: its key, its downsampling against the latent, whether it is the last of its
    stack."""

    key: BlockKey
    down: int
    last: bool


class UNetFamily:
    """A 2D UNet with cross-attention and eps, v or EDM sampling (`family.Family`). Accepted by its structure, so that
    community checkpoints and small models of the same form pass."""

    recomputed = ("ResBlock", "BasicTransformerBlock")

    def __init__(self, base: torch.nn.Module) -> None:
        self.base = base
        self.net = getattr(base.diffusion_model, "_orig_mod", base.diffusion_model)

    @classmethod
    def of(cls, patcher: object) -> UNetFamily:
        """The family of a MODEL. Raises: ValueError, a sentence for the user, for models of another."""
        import comfy.model_sampling
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

        base = patcher.model
        name = type(base).__name__
        wanted = "OmniPortrait needs a Stable Diffusion 1.x, 2.x or SDXL checkpoint"
        net = getattr(base, "diffusion_model", None)
        if not isinstance(getattr(net, "_orig_mod", net), UNetModel):
            raise ValueError(f"{wanted}, but this model is {name}; connect a model of one of those families.")
        sampling = patcher.get_model_object("model_sampling")
        if not isinstance(sampling, (comfy.model_sampling.EPS, comfy.model_sampling.EDM)):
            raise ValueError(
                f"{wanted} with eps, v or EDM prediction, but this model samples another way; remove the flow patch."
            )
        family = cls(base)
        if {type(layer).__name__ for layer in family.net.modules()} & {"VideoResBlock", "SpatialVideoTransformer"}:
            raise ValueError(f"{wanted}, but this model ({name}) makes video; connect a model of pictures.")
        if not list(family.transformer_sites(family.last_block)):
            raise ValueError(
                f"{wanted}, but this model ({name}) has no cross-attention; connect a model that reads a prompt."
            )
        return family

    @property
    def text_width(self) -> int:
        return self.base.model_config.unet_config["context_dim"]

    @property
    def last_block(self) -> int:
        return len(self.net.output_blocks) - 1

    def feature_block(self, requested: int = -1) -> int:
        """The output block whose result is the feature; -1 chooses the end of the first up level that has attention:
        output block 5 of SD1.5 (DIFT's up_blocks[1]), 2 of SDXL (up_blocks[0]). Raises: ValueError with the range."""
        if requested > self.last_block:
            raise ValueError(
                f"Feature block {requested} does not exist in this model; use 0 to {self.last_block}, or -1 to let "
                "the model choose."
            )
        if requested >= 0:
            return requested
        attends = False
        for number, block in enumerate(self.net.output_blocks):
            attends = attends or any(hasattr(layer, "transformer_blocks") for layer in block)
            if attends and _has(block, "Upsample"):
                return number
        return self.last_block

    def layers_of(self, net: torch.nn.Module, block: int) -> dict[str, torch.nn.Module]:
        return net.output_blocks[block]._modules

    def _blocks(self, exit_block: int) -> Iterator[tuple[str, int, torch.nn.Module, int]]:
        """(name, number, block, downsampling inside it) of what runs up to and including an output block. A Downsample
        is a block of its own; an Upsample ends its block."""
        down = 1
        for number, block in enumerate(self.net.input_blocks):
            down *= 2 if _has(block, "Downsample") else 1
            yield "input", number, block, down
        if self.net.middle_block is not None:
            yield "middle", 0, self.net.middle_block, down
        for number, block in enumerate(list(self.net.output_blocks)[: exit_block + 1]):
            yield "output", number, block, down
            down //= 2 if _has(block, "Upsample") else 1

    def transformer_sites(self, exit_block: int) -> Iterator[Site]:
        """Every transformer block that runs up to and including an output block."""
        for name, number, block, down in self._blocks(exit_block):
            for layer in block:
                stack = getattr(layer, "transformer_blocks", ())
                for i in range(len(stack)):
                    yield Site((name, number, i), down, i == len(stack) - 1)

    def sites(self, block: int, latent_size: tuple[int, int]) -> AttentionSites:
        """Layers by downsampling level: the level nearest to 16 tokens a side for A_c, to 32 for A_s.

        SD1.5 at 512: input 7, 8 and output 3-5 (16x16), self input 4, 5 (32x32). SDXL at 1024 has no 16x16
        cross-attention: its 32x32 blocks serve both. A level that only the middle block has (SD1.5's 8x8) is too coarse
        and not considered. Of a deep stack only the last self-attention is kept: SDXL has ten in a block, each q and k
        of 2.6 MB.
        """
        sites = list(self.transformer_sites(block))
        levels = {site.down for site in sites if site.key[0] != "middle"}
        if not levels:
            raise ValueError(
                "This model has no cross-attention before its feature block, so no token can say where the face is; "
                "use a model of the SD1.x, SD2.x or SDXL family."
            )
        side = math.sqrt(latent_size[0] * latent_size[1])

        def nearest_level(tokens: int) -> int:
            return min(sorted(levels), key=lambda down: abs(math.log(side / down / tokens)))

        cross, self_ = nearest_level(CROSS_SIDE), nearest_level(SELF_SIDE)
        return AttentionSites(
            cross=tuple(site.key for site in sites if site.down == cross),
            self_=tuple(site.key for site in sites if site.down == self_ and site.last),
        )

    def self_attention(self, finest: int | None) -> tuple[BlockKey, ...]:
        sites = list(self.transformer_sites(self.last_block))
        wanted = sorted({site.down for site in sites})[:finest]
        return tuple(site.key for site in sites if site.down in wanted)

    def cross_attention(self) -> tuple[BlockKey, ...]:
        return tuple(site.key for site in self.transformer_sites(self.last_block))

    def activation_bytes(self, block: int, batch: int, latent_size: tuple[int, int], itemsize: int) -> int:
        """What autograd holds for one pass without checkpointing, from counts of saved tensors.

        A residual block keeps about 10 tensors of its output's size, a transformer block about 22. Against the measured
        344 MiB of SD1.5 at 64x64 and 3.9 GiB of SDXL at 128x128 in half precision this is within a fifth.
        """
        per_token = 0.0
        for _, _, layers, down in self._blocks(block):
            for layer in layers:
                if type(layer).__name__ == "ResBlock":
                    per_token += 10 * layer.out_channels / down**2
                elif hasattr(layer, "transformer_blocks"):
                    per_token += 22 * layer.in_channels * len(layer.transformer_blocks) / down**2
        return int(batch * latent_size[0] * latent_size[1] * per_token * itemsize)

    def cast_bytes(self, dtype: torch.dtype, device: torch.device) -> int:
        """Weights that are cast or moved layer by layer; autograd would hold a copy of each until the backward has
        passed it."""
        return sum(
            p.numel() * dtype.itemsize
            for p in self.net.parameters()
            if type(p) in (torch.Tensor, torch.nn.Parameter) and (p.dtype != dtype or p.device != device)
        )

    def is_large(self, block: int, batch: int, latent_size: tuple[int, int], device: torch.device) -> bool:
        """Whether one pass as far as a block would take more than its share of the free memory."""
        import comfy.model_management

        dtype = self.base.manual_cast_dtype or self.base.get_dtype()
        need = self.activation_bytes(block, batch, latent_size, dtype.itemsize) + self.cast_bytes(dtype, device)
        return need > MEMORY_SHARE * comfy.model_management.get_free_memory(device)


def _has(block: torch.nn.Module, kind: str) -> bool:
    return any(type(layer).__name__ == kind for layer in block)
