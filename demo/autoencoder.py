"""The demo's light autoencoder: a 256x256 picture in four channels at 32x32 and back, quick to train on two CPU cores.

Nearly all work is done at a quarter of the picture's size and below, on an unshuffled input; two cheap convolutions
at half size smooth what the pixel shuffle would leave as a 4x4 pattern. There are no norms, so nothing depends on the
picture as a whole: tiles give what the whole picture gives, and half precision is safe.
Plain torch: training uses it without ComfyUI, and `architecture.py` puts it into ComfyUI's VAE.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

MARK = "portrait_autoencoder"
"""A buffer of the state, int64 [1]: the format. A state without it is not ours."""
FORMAT = 1
INSIDE = "first_stage_model."
"""Where a checkpoint keeps its autoencoder."""
CHANNELS = 4
SHRINK = 8


def under(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The part of a state whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer


class Residual(nn.Module):
    """Two convolutions beside the identity, which it is at the start: so it trains without norms."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = conv(width, width), conv(width, width)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.silu(self.first(nn.functional.silu(x)))
        return x + self.second(hidden)


def residuals(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(Residual(width) for _ in range(count)))


class Encoder(nn.Module):
    """[B, 3, H, W] -> [B, 4, H / 8, W / 8]."""

    def __init__(self, wide: int, deep: int, wide_blocks: int, deep_blocks: int):
        super().__init__()
        self.enter = conv(3 * 16, wide)
        self.wide = residuals(wide, wide_blocks)
        self.down = conv(wide, deep, stride=2)
        self.deep = residuals(deep, deep_blocks)
        self.leave = conv(deep, CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.wide(self.enter(nn.functional.pixel_unshuffle(x, 4)))
        return self.leave(nn.functional.silu(self.deep(self.down(x))))


class Decoder(nn.Module):
    """[B, 4, h, w] -> [B, 3, 8 h, 8 w]."""

    def __init__(self, wide: int, deep: int, fine: int, wide_blocks: int, deep_blocks: int):
        super().__init__()
        self.enter = conv(CHANNELS, deep)
        self.deep = residuals(deep, deep_blocks)
        self.up = conv(deep, 4 * wide)
        self.wide = residuals(wide, wide_blocks)
        self.up_fine = conv(wide, 4 * fine)
        self.fine = conv(fine, fine)
        self.leave = conv(fine, 3 * 4)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        silu, shuffle = nn.functional.silu, nn.functional.pixel_shuffle
        x = shuffle(self.up(silu(self.deep(self.enter(z)))), 2)
        x = shuffle(self.up_fine(silu(self.wide(x))), 2)
        return shuffle(self.leave(silu(self.fine(silu(x)))), 2)


class PortraitAutoencoder(nn.Module):
    """encode: pictures [B, 3, H, W] in -1..1, sides multiples of 8 -> latents [B, 4, H / 8, W / 8] of unit variance.
    decode: the way back. `wide` and `deep` are the channels at a quarter and an eighth of the picture's size, `fine`
    those at half; the block counts are (encoder, decoder)."""

    def __init__(
        self,
        wide: int = 64,
        deep: int = 128,
        fine: int = 32,
        wide_blocks: tuple[int, int] = (1, 2),
        deep_blocks: tuple[int, int] = (2, 3),
    ):
        super().__init__()
        self.encoder = Encoder(wide, deep, wide_blocks[0], deep_blocks[0])
        self.decoder = Decoder(wide, deep, fine, wide_blocks[1], deep_blocks[1])
        self.register_buffer(MARK, torch.tensor([FORMAT]))

    @classmethod
    def shaped_like(cls, state: Mapping[str, torch.Tensor]) -> PortraitAutoencoder:
        """An autoencoder with the widths and depths of `state`, not yet its values."""

        def blocks(part: str) -> tuple[int, int]:
            return tuple(
                sum(key.startswith(f"{side}.{part}.") and key.endswith(".first.weight") for key in state)
                for side in ("encoder", "decoder")
            )

        wide, deep = state["encoder.down.weight"].shape[1::-1]
        return cls(wide, deep, state["decoder.fine.weight"].shape[0], blocks("wide"), blocks("deep"))

    @classmethod
    def load(cls, file: Path) -> PortraitAutoencoder:
        """What `make vae` wrote, or the part of it in a checkpoint of `make base`; in single precision."""
        import safetensors.torch

        state = safetensors.torch.load_file(file)
        inside = under(state, INSIDE)
        autoencoder = cls.shaped_like(inside or state)
        autoencoder.load_state_dict(inside or state)
        return autoencoder.eval()

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.encoder(pictures)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.decoder(latents)

    @torch.no_grad()
    def fold_statistics(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        """Make `encode` give (latent - mean) / deviation, per channel [4], by its last layer alone."""
        last = self.encoder.leave
        last.weight.div_(deviation.view(-1, 1, 1, 1).to(last.weight))
        last.bias.copy_((last.bias - mean.to(last.bias)) / deviation.to(last.bias))


def is_ours(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a VAE state is a PortraitAutoencoder's."""
    found = state.get(MARK)
    return found is not None and found.numel() == 1 and int(found) == FORMAT
