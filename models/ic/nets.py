"""The matching and the appearance net: each the encoder and middle of a UNet, as a ControlNet is (paper, Fig. 3).

What enters is the condition c_f of Eq. 1 and not the noisy picture: a ControlNet's entry would hear the condition only
through a zero convolution, and a net of few steps would hear next to nothing of it (measured; IC-Portrait's text leaves
it open).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Shape:
    """What a UNet's encoder is built from, under ComfyUI's names. Of the two ways to tell heads one is -1."""

    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    transformer_depth: tuple[int, ...]
    transformer_depth_middle: int
    context_dim: int
    num_heads: int = -1
    num_head_channels: int = -1
    use_linear_in_transformer: bool = False
    in_channels: int = 4

    @classmethod
    def of(cls, unet_config: Mapping[str, object]) -> Shape:
        """Of ComfyUI's configuration of a loaded model."""
        given = {name: unet_config[name] for name in asdict(cls(0, (), (), (), 0, 0)) if name in unet_config}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})

    def unet(self) -> dict[str, object]:
        """The keywords of ComfyUI's UNetModel; its decoder has no attention, for it is thrown away."""
        given = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        nothing = [0] * sum(count + 1 for count in self.num_res_blocks)
        return given | {
            "image_size": 32, "out_channels": self.in_channels, "transformer_depth_output": nothing, "legacy": False,
            "use_spatial_transformer": True,
        }  # fmt: skip

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the features, the finest first and the middle's last."""
        widths, current = [self.model_channels], self.model_channels
        for number, (times, blocks) in enumerate(zip(self.channel_mult, self.num_res_blocks, strict=True)):
            current = times * self.model_channels
            widths += [current] * blocks
            if number < len(self.channel_mult) - 1:
                widths.append(current)
        return (*widths, current)


class Trunk(nn.Module):
    """A UNet's time embedding and the blocks of its encoder and middle, without values. operations: its layers' classes
    (comfy.ops). levels: only so many blocks, the finest first."""

    def __init__(self, shape: Shape, operations: object, levels: int | None = None, **factory: object) -> None:
        super().__init__()
        from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

        unet = UNetModel(**shape.unet(), operations=operations, **factory)
        self.model_channels = shape.model_channels
        self.time_embed = unet.time_embed
        self.input_blocks = unet.input_blocks[:levels]
        self.middle_block = unet.middle_block if levels is None or levels == len(shape.widths) else None

    def forward(
        self, condition: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, options: dict
    ) -> list[torch.Tensor]:
        """Features [B, C_l, h_l, w_l] after each block, the middle's last.

        condition: c_f [B, 4, h, w]. timesteps: [B]. context: [B, T, D]. options: ComfyUI's transformer_options.
        """
        from comfy.ldm.modules.diffusionmodules.openaimodel import forward_timestep_embed
        from comfy.ldm.modules.diffusionmodules.util import timestep_embedding

        time = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(condition.dtype))
        h, features = condition, []
        middle = () if self.middle_block is None else (self.middle_block,)
        for block in (*self.input_blocks, *middle):
            h = forward_timestep_embed(block, h, time, context, options)
            features.append(h)
        return features

    def begin_with(self, unet: nn.Module) -> None:
        """The values of a UNet of this shape, copied, in float32; zero convolutions begin at 0."""
        given, own = unet.state_dict(), self.state_dict()
        values = {
            name: torch.zeros(shape.shape) if name.startswith("zero.") else given[name].detach().float().clone()
            for name, shape in own.items()
        }
        self.load_state_dict(values, assign=True)
        self.requires_grad_(True)


class Appearance(Trunk):
    """The appearance net: a trunk with ControlNet's zero convolutions behind it."""

    def __init__(self, shape: Shape, operations: object, **factory: object) -> None:
        super().__init__(shape, operations, **factory)
        self.zero = nn.ModuleList(operations.Conv2d(width, width, 1, **factory) for width in shape.widths)

    def residuals(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What is added to the UNet's skips, and to its middle, of aggregated features."""
        return [layer(each) for layer, each in zip(self.zero, features, strict=True)]


class ICNets(nn.Module):
    """Both nets. operations, factory: as of `Trunk`. matching_levels: blocks of the matching net, 0 for none; it is
    whole by default."""

    def __init__(self, shape: Shape, operations: object, matching_levels: int | None = None, **factory: object) -> None:
        super().__init__()
        self.shape = shape
        self.appearance = Appearance(shape, operations, **factory)
        self.matching = None if matching_levels == 0 else Trunk(shape, operations, matching_levels, **factory)

    def begin_with(self, unet: nn.Module) -> None:
        """Both as copies of a UNet of this shape."""
        self.appearance.begin_with(unet)
        if self.matching is not None:
            self.matching.begin_with(unet)
