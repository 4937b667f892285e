"""CLIPs with ComfyUI's real tokenizers, and the column of a word by transformers' own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.sd2_clip
from omniportrait.sampling.tokens import find_subject, subject_in
from transformers import CLIPTokenizerFast

TOKENIZERS = {
    "sd15": comfy.sd1_clip.SD1Tokenizer,
    "sd20": comfy.text_encoders.sd2_clip.SD2Tokenizer,
    "sdxl": comfy.sdxl_clip.SDXLTokenizer,
}
VOCABULARY = CLIPTokenizerFast.from_pretrained(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer")


def make_clip(family: str = "sd15", folder: Path | None = None, model: object = None):
    """A CLIP of which only the tokenizer is there, or also core's text model."""
    tokenizer = TOKENIZERS[family](embedding_directory=None if folder is None else str(folder))
    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights, cond_stage_model=model)


def found(clip, text: str, subject: str, occurrence: int = 0) -> int:
    tokens = clip.tokenize(text)
    return find_subject(clip, tokens, subject_in(clip, tokens, subject), occurrence)


def by_offsets(plain: str, end: int) -> int:
    """Column of the token that ends at character `end` of a prompt without weights or embeddings."""
    offsets = VOCABULARY(plain, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    (k,) = (k for k, (_, stop) in enumerate(offsets) if stop == end)
    return 77 * (k // 75) + 1 + k % 75


def end_of(plain: str, word: str, occurrence: int = 0) -> int:
    end = 0
    for _ in range(occurrence + 1):
        end = plain.index(word, end) + len(word)
    return end
