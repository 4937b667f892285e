"""Attention maps from inside a UNet pass: where the subject's token looks (A_c of Eq. 6) and A_s, the self-attention.

Recorders are chained over whatever attention patches other packs hold and are put only into the private pass's own
transformer_options, never into a model's. They keep q and k; the maps are made after the pass, for the wanted token
only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..guidance.omniportrait.mask import resize_map

CROSS_SIDE = 16
"""Side of the cross-attention maps in the paper (Eq. 5), in tokens."""
SELF_SIDE = 32
"""Side at which self-attention still sees a face that covers a tenth of the picture."""

BlockKey = tuple[str, int, int]
"""("input" | "middle" | "output", block, transformer block inside it), as ComfyUI keys attention patches."""


@dataclass(frozen=True)
class TransformerSite:
    """One transformer block of a UNet: its key, its downsampling against the latent, whether it is the last of its
    stack."""

    key: BlockKey
    down: int
    last: bool


@dataclass(frozen=True)
class AttentionSites:
    """Which blocks give the maps: cross-attention keys and self-attention keys."""

    cross: tuple[BlockKey, ...]
    self_: tuple[BlockKey, ...]


def transformer_sites(unet: torch.nn.Module, exit_block: int) -> list[TransformerSite]:
    """Every transformer block that runs up to and including output block `exit_block`, read from the UNet's own
    modules."""
    sites: list[TransformerSite] = []
    down = 1

    def add(name: str, number: int, block: torch.nn.Module) -> None:
        for layer in block:
            stack = getattr(layer, "transformer_blocks", None)
            if stack is not None:
                sites.extend(TransformerSite((name, number, i), down, i == len(stack) - 1) for i in range(len(stack)))

    for number, block in enumerate(unet.input_blocks):
        if any(type(layer).__name__ == "Downsample" for layer in block):
            down *= 2
        add("input", number, block)
    if unet.middle_block is not None:
        add("middle", 0, unet.middle_block)
    for number, block in enumerate(unet.output_blocks):
        if number > exit_block:
            break
        add("output", number, block)  # its Upsample, if any, comes after its transformer
        if any(type(layer).__name__ == "Upsample" for layer in block):
            down //= 2
    return sites


def choose_sites(unet: torch.nn.Module, exit_block: int, latent_size: tuple[int, int]) -> AttentionSites:
    """Layers by downsampling level: the level nearest to 16 tokens a side for A_c, to 32 for A_s.

    SD1.5 at 512: input 7, 8 and output 3-5 (16x16), self input 4, 5 (32x32). SDXL at 1024 has no 16x16 cross-attention:
    its
    32x32 blocks serve both. A level that only the middle block has (SD1.5's 8x8) is too coarse and not considered. Of a
    deep
    stack only the last self-attention is kept: SDXL has ten in a block, each q and k of 2.6 MB.
    """
    sites = transformer_sites(unet, exit_block)
    levels = {site.down for site in sites if site.key[0] != "middle"}
    if not levels:
        raise ValueError(
            "This model has no cross-attention before its feature block, so no token can say where the face is; use a "
            "model of "
            "the SD1.x, SD2.x or SDXL family."
        )
    side = math.sqrt(latent_size[0] * latent_size[1])

    def nearest_level(tokens: int) -> int:
        return min(sorted(levels), key=lambda down: abs(math.log(side / down / tokens)))

    cross, self_ = nearest_level(CROSS_SIDE), nearest_level(SELF_SIDE)
    return AttentionSites(
        cross=tuple(site.key for site in sites if site.down == cross),
        self_=tuple(site.key for site in sites if site.down == self_ and site.last),
    )


@dataclass
class Recording:
    """q and k that one private pass left behind, by block; `hits` counts the calls so that tests can see each hook fire
    once."""

    cross: dict[BlockKey, tuple[torch.Tensor, torch.Tensor, int]] = field(default_factory=dict)
    self_: dict[BlockKey, tuple[torch.Tensor, torch.Tensor, int]] = field(default_factory=dict)
    sizes: dict[BlockKey, tuple[int, int]] = field(default_factory=dict)
    hits: dict[tuple[str, BlockKey], int] = field(default_factory=dict)
    closed: bool = False

    def close(self) -> None:
        """The pass is over: a recomputation under checkpointing must not record again."""
        self.closed = True

    def token_map(self, index: int, token_count: int) -> torch.Tensor:
        """A_c(m): [B, h, w] mean over layers and heads of softmax(q k^T)[..., m].

        Conditionings of unequal length are padded by repetition, so the columns m, m + token_count, … are summed.
        """
        if not self.cross or not self.self_:
            raise ValueError(
                "The attention layers that show where the face is could not be read, because another node merges or "
                "drops their "
                "tokens; bypass that node (token merging, HyperTile) or give RB-Guidance a face_reference and a mask."
            )
        maps = []
        for key, (q, k, heads) in self.cross.items():
            columns = torch.arange(index, k.shape[1], token_count, device=k.device)
            weights = _attention(q, k, heads)[..., columns].sum(dim=-1).mean(dim=1)
            maps.append(weights.view(len(q), *self.sizes[key]))
        return torch.stack(maps).mean(dim=0)

    def smooth(self, maps: torch.Tensor) -> torch.Tensor:
        """A_s . maps: [B, h, w] to the self-attention's own [B, h', w'], mean over layers and heads.

        Attention with the map as its value is the matrix-vector product, without the matrix. The value is as wide as
        the query: Metal's attention takes it for granted.
        """
        smoothed = []
        for key, (q, k, heads) in self.self_.items():
            size = self.sizes[key]
            q, k = _heads(q, heads), _heads(k, heads)
            values = resize_map(maps, size).flatten(1)[:, None, :, None].expand_as(k).contiguous()
            out = torch.nn.functional.scaled_dot_product_attention(q, k, values)
            smoothed.append(out[..., 0].mean(dim=1).view(-1, *size))
        return torch.stack(smoothed).mean(dim=0)


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, N, heads * d] to float32 [B, heads, N, d]."""
    return x.float().view(len(x), x.shape[1], heads, -1).transpose(1, 2)


def _attention(q: torch.Tensor, k: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, heads, N, M] softmax of the scaled products. Only for short keys: a prompt's tokens."""
    q, k = _heads(q, heads), _heads(k, heads)
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)


def install_recorders(transformer_options: dict, sites: AttentionSites, plain_attention: Callable) -> Recording:
    """Put recorders into `transformer_options["patches_replace"]` (a private copy) and return what they will fill.

    plain_attention(q, k, v, heads, attn_precision=…) runs where no other pack has a patch.
    """
    recording = Recording()
    replace = {kind: dict(table) for kind, table in transformer_options.get("patches_replace", {}).items()}
    for kind, keys, store in (("attn1", sites.self_, recording.self_), ("attn2", sites.cross, recording.cross)):
        table = replace.setdefault(kind, {})
        for key in keys:
            foreign = table.get(key, table.get(key[:2]))
            table[key] = _recorder(recording, kind, key, store, foreign, plain_attention)
    transformer_options["patches_replace"] = replace
    return recording


def _recorder(
    recording: Recording, kind: str, key: BlockKey, store: dict, foreign: Callable | None, plain_attention: Callable
) -> Callable:
    def record(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra_options: dict) -> torch.Tensor:
        heads = extra_options["n_heads"]
        h, w = extra_options["activations_shape"][-2:]
        if not recording.closed:
            recording.hits[kind, key] = recording.hits.get((kind, key), 0) + 1
            own = k.shape[1] if kind == "attn2" else h * w
            # Another pack may merge tokens; such a map has no place in the picture. Or it lets the picture look at
            # another one too, whose points come after its own (reference-only, StyleAligned).
            if q.shape[1] == h * w and k.shape[1] >= own:
                store[key] = (q.detach(), k[:, :own].detach(), heads)
                recording.sizes[key] = (h, w)
        if foreign is not None:
            return foreign(q, k, v, extra_options)
        return plain_attention(q, k, v, heads, attn_precision=extra_options.get("attn_precision"))

    return record
