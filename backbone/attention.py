"""Attention maps from inside a pass: where a token looks (A_c of the paper) and A_s, the self-attention.

Recorders are chained over whatever attention patches other packs hold and are put only into the options of a private
pass or of one prediction, never into a model's. They keep q and k; the maps are made after the pass, for the wanted
tokens only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from .regions import KEY as OWN_TEXT
from .regions import follow_text

BlockKey = tuple[str, int, int]
"""("input" | "middle" | "output", block, transformer block inside it), as ComfyUI keys attention patches."""


MERGED = (
    "The attention layers that show where the face is could not be read, because another node merges or drops their "
    "tokens; bypass that node (token merging, HyperTile) or give RB-Guidance a face_reference and a mask."
)
REPLACED = (
    "Another node's regions (attention couple) take the place of the sampler's prompt, so its word for the person is "
    "never read; connect the conditioning of the person's region to the sampler's positive input too."
)


@dataclass(frozen=True)
class AttentionSites:
    """Which transformer blocks give the maps: cross-attention keys and self-attention keys."""

    cross: tuple[BlockKey, ...]
    self_: tuple[BlockKey, ...]


@dataclass
class Recording:
    """q and k that one private pass left behind, by block; `hits` counts the calls so that tests can see each hook fire
    once. columns: boolean [B, T'], which keys are the pass's own text, where other packs' patches changed their number.
    replaced: whether such a patch left the text out."""

    cross: dict[BlockKey, tuple[torch.Tensor, torch.Tensor, int]] = field(default_factory=dict)
    self_: dict[BlockKey, tuple[torch.Tensor, torch.Tensor, int]] = field(default_factory=dict)
    sizes: dict[BlockKey, tuple[int, int]] = field(default_factory=dict)
    hits: dict[tuple[str, BlockKey], int] = field(default_factory=dict)
    columns: dict[BlockKey, torch.Tensor] = field(default_factory=dict)
    replaced: bool = False
    closed: bool = False

    def close(self) -> None:
        """The pass is over: a recomputation under checkpointing must not record again."""
        self.closed = True

    def token_map(self, column: int | Sequence[int], token_count: int) -> torch.Tensor:
        """A_c(m): [B, h, w] mean over layers and heads of softmax(q k^T)[..., m].

        column: m, of all the batch or one a row of it. Conditionings of unequal length are padded by repetition, so the
        columns m, m + token_count, … are summed.
        """
        if not self.cross:
            raise ValueError(REPLACED if self.replaced else MERGED)
        maps = []
        for key, (q, k, heads) in self.cross.items():
            wanted = torch.as_tensor(column, device=k.device).view(-1, 1, 1, 1)
            own = torch.arange(k.shape[1], device=k.device) % token_count == wanted
            if key in self.columns:
                own = own & self.columns[key][:, None, None]
            weights = (_attention(q, k, heads) * own).sum(dim=-1).mean(dim=1)
            maps.append(weights.view(len(q), *self.sizes[key]))
        return torch.stack(maps).mean(dim=0)

    def text_attention(self) -> dict[BlockKey, torch.Tensor]:
        """[B, h w, tokens] of each cross-attention layer: the mean over heads of softmax(q k^T)."""
        return {key: _attention(q, k, heads).mean(dim=1) for key, (q, k, heads) in self.cross.items()}

    def queries(self) -> dict[BlockKey, torch.Tensor]:
        """[B, h w, D] of each cross-attention layer: its q, all heads side by side."""
        return {key: q for key, (q, _, _) in self.cross.items()}

    def spread(self, column: int | Sequence[int], token_count: int) -> torch.Tensor:
        """A_s . A_c of a token, [B, h, w], in even shares of the attention: 1 is what each token would have if all had
        the same, so that a longer prompt makes no word weaker."""
        return self.smooth(self.token_map(column, token_count)) * token_count

    def smooth(self, maps: torch.Tensor) -> torch.Tensor:
        """A_s . maps: [B, h, w] to the self-attention's own [B, h', w'], mean over layers and heads.

        Attention with the map as its value is the matrix-vector product, without the matrix. The value is as wide as
        the query: Metal's attention takes it for granted.
        """
        if not self.self_:
            raise ValueError(MERGED)
        smoothed = []
        for key, (q, k, heads) in self.self_.items():
            size = self.sizes[key]
            q, k = _heads(q, heads), _heads(k, heads)
            sized = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)
            values = sized.flatten(2)[..., None].expand_as(k).contiguous()
            out = F.scaled_dot_product_attention(q, k, values)
            smoothed.append(out[..., 0].mean(dim=1).view(-1, *size))
        return torch.stack(smoothed).mean(dim=0)


Whose = Callable[[dict, int], Iterable[tuple[Recording, slice]]]
"""(extra options, rows of the call) to the recordings that want some of its rows, and which."""


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, N, heads * d] to float32 [B, heads, N, d]."""
    return x.float().view(len(x), x.shape[1], heads, -1).transpose(1, 2)


def _attention(q: torch.Tensor, k: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, heads, N, M] softmax of the scaled products. Only for short keys: a prompt's tokens."""
    q, k = _heads(q, heads), _heads(k, heads)
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)


def record_attention(transformer_options: dict, sites: AttentionSites, keep_graph: bool = False) -> Recording:
    """Put recorders into the options of a private pass and return what they will fill.

    keep_graph: keep the cross-attention's q and k with their gradients, for a loss on the maps. Guidance only looks.
    """
    recording = Recording()

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict) -> torch.Tensor:
        return plain_attention(q, k, v, extra["n_heads"], attn_precision=extra.get("attn_precision"))

    put_recorders(transformer_options, sites, lambda extra, rows: [(recording, slice(rows))], attend, keep_graph)
    return recording


def put_recorders(
    options: dict, sites: AttentionSites, whose: Whose, attend: Callable, keep_graph: bool = False
) -> None:
    """Recorders in `patches_replace` of a private copy of transformer_options, on copies of its tables.

    attend: (q, k, v, extra) to what attention gives, where no other pack's replacement stands.
    """
    follow_text(options)
    replace = {kind: dict(table) for kind, table in options.get("patches_replace", {}).items()}
    for kind, keys in (("attn1", sites.self_), ("attn2", sites.cross)):
        table = replace.setdefault(kind, {})
        for key in keys:
            inner = table.get(key, table.get(key[:2], attend))
            table[key] = _recorder(whose, kind, key, inner, keep_graph and kind == "attn2")
    options["patches_replace"] = replace


def _recorder(whose: Whose, kind: str, key: BlockKey, inner: Callable, keep_graph: bool) -> Callable:
    def record(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict) -> torch.Tensor:
        pictures, _, h, w = extra["activations_shape"]
        own = h * w if kind == "attn1" else k.shape[1]
        texts = extra.get(OWN_TEXT) if kind == "attn2" else None
        # Another pack may merge tokens; such a map has no place in the picture. Or it lets the picture look at another
        # one too, whose points come after its own (reference-only, StyleAligned).
        readable = q.shape[1] == h * w and k.shape[1] >= own
        for recording, rows in whose(extra, pictures):
            if recording.closed:
                continue
            recording.hits[kind, key] = recording.hits.get((kind, key), 0) + 1
            first, last, _ = rows.indices(pictures)
            text = None if texts is None else texts[first // (last - first)]
            if text is None and len(q) != pictures:
                recording.replaced = recording.replaced or kind == "attn2"
                continue
            rows = rows if text is None else text.rows
            store = recording.self_ if kind == "attn1" else recording.cross
            if readable and key not in store:  # ComfyUI's own call comes first; a later one is another pack's
                kept = q[rows], k[rows, :own]
                store[key] = (*(kept if keep_graph else (each.detach() for each in kept)), extra["n_heads"])
                recording.sizes[key] = (h, w)
                if text is not None:
                    recording.columns[key] = text.columns
        return inner(q, k, v, extra)

    return record


def plain_attention(*args: object, **kwargs: object) -> torch.Tensor:
    """ComfyUI's attention by torch.nn.functional.scaled_dot_product_attention."""
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*args, **kwargs)


def core_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict) -> torch.Tensor:
    """ComfyUI's attention by whatever kernel it has chosen."""
    from comfy.ldm.modules.attention import optimized_attention

    precision = extra.get("attn_precision")
    return optimized_attention(q, k, v, extra["n_heads"], attn_precision=precision, transformer_options=extra)


def private_options(options: dict) -> dict:
    """Ask for PyTorch attention, whose backward is right; Sage, flash, int8 and chunked attention have none."""
    options["optimized_attention_override"] = lambda function, *args, **kwargs: plain_attention(*args, **kwargs)
    return options
