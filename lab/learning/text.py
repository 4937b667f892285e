"""The demo's text encoder while it trains: ComfyUI's CLIP text model, with only the words of the captions in its table.

ComfyUI's own forward changes its input in place, which has no backward, so `TextModel.forward` is the same arithmetic
without that; a test holds it to CLIPTextEncode of the exported file.
"""

from __future__ import annotations

import comfy.clip_model
import comfy.ops
import comfy.sd1_clip
import torch
from torch import nn

from ...demo.architecture import CLIP, TEXT

LENGTH = 77


def tokenize(texts: list[str]) -> torch.Tensor:
    """CLIP's token ids as ComfyUI makes them: [N, 77], start, words, end, and end again to the end."""
    tokenizer = comfy.sd1_clip.SD1Tokenizer()
    known: dict[str, list[int]] = {}
    for text in texts:
        if text not in known:
            (chunk,) = tokenizer.tokenize_with_weights(text)["l"]
            known[text] = [token for token, _ in chunk]
    return torch.tensor([known[text] for text in texts])


class TextModel(nn.Module):
    """Token ids [B, 77] -> states [B, 77, width]. `ids`: the sorted token ids that it can read."""

    def __init__(self, ids: torch.Tensor):
        super().__init__()
        width, layers = TEXT["hidden_size"], TEXT["num_hidden_layers"]
        self.register_buffer("ids", ids)
        self.core = comfy.clip_model.CLIPTextModel(CLIP | TEXT, torch.float32, "cpu", comfy.ops.disable_weight_init)
        del self.core.text_projection  # SD1.5 does not use it
        self.core.text_model.embeddings.token_embedding = nn.Embedding(len(ids), width)
        for name, value in self.core.named_parameters():
            if "norm" in name:
                nn.init.constant_(value, float(name.endswith("weight")))
            elif "embedding" in name:
                nn.init.normal_(value, std=0.1)
            elif value.ndim == 1:
                nn.init.zeros_(value)
            else:
                to_residual = name.endswith(("out_proj.weight", "fc2.weight"))
                nn.init.normal_(value, std=(value.shape[1] * (2 * layers if to_residual else 1)) ** -0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        text = self.core.text_model
        places = torch.searchsorted(self.ids, tokens)
        x = text.embeddings.token_embedding(places) + text.embeddings.position_embedding.weight
        for layer in text.encoder.layers:
            x = x + attend(layer.self_attn, layer.layer_norm1(x))
            x = x + layer.mlp(layer.layer_norm2(x))
        return text.final_layer_norm(x)

    @torch.no_grad()
    def exported(self) -> dict[str, torch.Tensor]:
        """The state under ComfyUI's names with CLIP's whole table; a word never seen gets the mean of those seen."""
        state = self.core.state_dict()
        name = "text_model.embeddings.token_embedding.weight"
        table = state[name].mean(0).repeat(CLIP["vocab_size"], 1)
        table[self.ids] = state[name]
        return state | {name: table}

    def read(self, state: dict[str, torch.Tensor]) -> None:
        """Take what `exported` gave, in this model's own words. Words that it had not seen are all the same there; they
        keep the values they begin with here, or nothing would tell them apart."""
        name = "text_model.embeddings.token_embedding.weight"
        table, own = state[name][self.ids.cpu()], self.core.state_dict()[name]
        unseen = (table == state[name].mode(0).values).all(1, keepdim=True)
        self.core.load_state_dict(state | {name: torch.where(unseen, own.to(table), table)})


def attend(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Causal self-attention with the weights of ComfyUI's CLIPAttention: [B, L, width] -> [B, L, width]."""
    q, k, v = (
        project(x).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        for project in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return layer.out_proj(out.transpose(1, 2).flatten(-2))
