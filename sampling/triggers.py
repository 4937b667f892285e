"""What PhotoMaker's encode nodes make of a prompt: they leave out the word that triggers the identity.

Core's node takes the word "photomaker" and means to drop it; other packs' nodes take any word, and repeat the one
before it for every photograph. Which word it was shows in the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from .tokens import read_layouts

PHOTOMAKER_TRIGGER = "photomaker"
COPIES = 8
"""As often may the word before the trigger be repeated: once or twice for each photograph."""


class Reading(NamedTuple):
    """A prompt as a node may have encoded it. tokens: as clip.tokenize gives them. columns: where a column of the
    prompt's own tokens is now; None where it stays. fused: the columns that carry an identity."""

    tokens: dict
    columns: dict[int, int] | None = None
    fused: tuple[int, ...] = ()


def tokenisations(clip, text: str) -> Iterator[dict]:
    """Yield the tokens that a base conditioning of `text` may have been made of by core's nodes, the plain ones first.

    PhotoMaker's encode node means to drop the prompt's trigger word. It does so by word id, which on current cores
    counts segments between weights and embeddings: mostly the trigger stays in, sometimes a whole segment goes. So its
    own filter is replayed, and the prompt without the trigger follows.
    """
    yield clip.tokenize(text)
    words = text.split(" ")
    if PHOTOMAKER_TRIGGER not in words:
        return
    dropped = words.index(PHOTOMAKER_TRIGGER) + 1
    yield {
        key: [_without_word(chunk, dropped) for chunk in chunks]
        for key, chunks in clip.tokenize(text, return_word_ids=True).items()
    }
    yield clip.tokenize(" ".join(word for word in words if word != PHOTOMAKER_TRIGGER))


def _without_word(chunk: list[tuple], word_id: int) -> list[tuple]:
    kept = [(token, weight) for token, weight, number in chunk if number != word_id]
    return kept + [tuple(chunk[-1][:2])] * (len(chunk) - len(kept))


def without_trigger(clip, tokens: dict, column: int) -> Iterator[Reading]:
    """The prompt as other packs' PhotoMaker nodes encode it, if the word at a column is the trigger.

    tokens: the prompt's own. Every word like it is left out, and the token before it stands as often as there are
    photographs. PhotoMaker-Plus takes the word's first token only and also drops what follows the last trigger
    (its utils.py, tokenize_with_trigger_word); the paper's own pipeline keeps it.
    """
    for copies in range(1, COPIES + 1):
        for keeps_rest in (False, True):
            parts = {key: _Rebuilt(clip, key, chunks, column, copies, keeps_rest) for key, chunks in tokens.items()}
            if all(part.chunks for part in parts.values()):
                one = next(iter(parts.values()))
                yield Reading({key: part.chunks for key, part in parts.items()}, one.columns, tuple(one.fused))


class _Rebuilt:
    """One text encoder's tokens without a trigger; no chunks where the column holds none."""

    def __init__(self, clip, key: str, chunks: list, column: int, copies: int, keeps_rest: bool) -> None:
        self.chunks: list[list[tuple]] = []
        self.columns: dict[int, int] = {}
        self.fused: list[int] = []
        tokenizer = getattr(clip.tokenizer, f"clip_{key}")
        places = _places(tokenizer, chunks)
        trigger = next((token for place, token, _ in places if place == column), None)
        if trigger is None or any(isinstance(token, torch.Tensor | dict) for _, token, _ in places):
            return
        if not keeps_rest:
            places = [each for each in places if each[1] != tokenizer.pad_token]
        kept, part, inside = [], [], False
        for each in places:
            if inside:  # the rest of a trigger of several tokens
                inside = not _ends_word(tokenizer, each[1])
            elif each[1] != trigger:
                part.append((*each, False))
            else:
                kept += [*part[:-1], *[(*last[:3], True) for last in part[-1:] for _ in range(copies)]]
                part, inside = [], keeps_rest and not _ends_word(tokenizer, trigger)
        kept += part if keeps_rest else []
        room = tokenizer.max_length - 2
        for start in range(0, len(kept), room):
            self._add(tokenizer, kept[start : start + room])

    def _add(self, tokenizer, kept: list[tuple]) -> None:
        start = len(self.chunks) * tokenizer.max_length
        for place, (column, _, _, fused) in enumerate(kept, start + 1):
            self.columns.setdefault(column, place)
            self.fused += [place] if fused else []
        chunk = [(tokenizer.start_token, 1.0), *((token, weight) for _, token, weight, _ in kept)]
        chunk.append((tokenizer.end_token, 1.0))
        self.chunks.append(chunk + [(tokenizer.pad_token, 1.0)] * (tokenizer.max_length - len(chunk)))


def _places(tokenizer, chunks: list) -> list[tuple]:
    """(column, token, weight) of the text's own tokens, without start, end and padding."""
    places, start = [], 0
    for chunk in chunks:
        for column, (token, weight, *_) in enumerate(chunk, start):
            if isinstance(token, int) and token == tokenizer.end_token:
                break
            if not isinstance(token, int) or token != tokenizer.start_token:
                places.append((column, token, weight))
        start += len(chunk)
    return places


def _ends_word(tokenizer, token: int) -> bool:
    return tokenizer.inv_vocab[token].endswith("</w>")


def ends_of(clip, tokens: dict) -> list[int]:
    """The columns of all end tokens."""
    return sorted({end for layout in read_layouts(clip, tokens).values() for end in layout.ends})
