"""Which column of a conditioning belongs to a word of the prompt.

Reads what ComfyUI's tokenizer returned (`clip.tokenize`), so that prompt weights, textual-inversion embeddings and
prompts of more than one 77-token chunk are counted exactly as the text encoder counts them. The column is that of the
word's last sub-token, where a causal text encoder has seen the whole word (m of the OmniPortrait paper, Sec. 3.2).
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass

import torch

from .words import escaped, places

_ENCODERS = ("l", "g", "h")
_WORDS_SHOWN = 40


@dataclass(frozen=True)
class Word:
    """text: as the tokenizer spells it (lower case). ids: its BPE ids, none: an embedding. column: of the last id.

    pieces: for each id its UTF-8 bytes and its column.
    """

    text: str
    ids: tuple[int, ...]
    column: int
    pieces: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Layout:
    """One text encoder's view of a prompt. ends: column of each chunk's end token, which has seen all of the chunk."""

    words: tuple[Word, ...]
    ends: tuple[int, ...]


def check_clip(clip: object) -> None:
    """Raise ValueError where there is no text encoder at all, which is how some checkpoints come."""
    if clip is None:
        raise ValueError(
            "The clip input is empty: this checkpoint holds no text encoder, so load one with a CLIP loader node and "
            "connect that."
        )


def read_layouts(clip, tokens: dict) -> dict[str, Layout]:
    """The words and end tokens of clip.tokenize's dictionary for each text encoder, by core's key ("l", "g", "h").

    ValueError for text encoders other than CLIP, which share columns between words or put several behind one another.
    """
    if not tokens or not set(tokens) <= set(_ENCODERS):
        raise ValueError(
            f"This CLIP is of a kind that Pivot Conditioning cannot read ({type(clip.tokenizer).__name__}: "
            f"{', '.join(tokens)}): connect the CLIP of an SD1.x, SD2.x or SDXL checkpoint."
        )
    return {
        key: _layout(getattr(clip.tokenizer, f"clip_{key}"), _width(clip, key), chunks)
        for key, chunks in tokens.items()
    }


def _width(clip, key: str) -> int | None:
    encoder = getattr(clip.cond_stage_model, f"clip_{key}", None)
    return None if encoder is None else encoder.transformer.get_input_embeddings().weight.shape[-1]


def _layout(tokenizer, width: int | None, chunks: list[list[tuple]]) -> Layout:
    words: list[Word] = []
    ends: list[int] = []
    pending: list[int] = []  # a word may be cut by the end of a chunk, so it outlives one
    pieces: list[tuple[int, int]] = []
    start = 0
    for chunk in chunks:
        column = start
        for token, *_ in chunk:
            if not isinstance(token, numbers.Integral):
                columns, kept = _embedding_columns(token, width)
                if kept:
                    column += columns
                    words.append(Word("", (), column - 1))
                continue
            token = int(token)
            if token == tokenizer.end_token:
                ends.append(column)
                break  # what follows is padding, which for CLIP-G and CLIP-H is an ordinary token ("!")
            if token != tokenizer.start_token:
                spelling = tokenizer.inv_vocab[token]  # one letter for each byte
                pending.append(token)
                pieces.append((len(spelling.removesuffix("</w>")), column))
                if spelling.endswith("</w>"):
                    text = tokenizer.tokenizer.decode(pending).strip()
                    words.append(Word(text, tuple(pending), column, tuple(pieces)))
                    pending, pieces = [], []
            column += 1
        start += sum(_embedding_columns(token, width)[0] for token, *_ in chunk)
    return Layout(tuple(words), tuple(ends))


def _embedding_columns(token: object, width: int | None) -> tuple[int, bool]:
    """How many columns a token takes, and whether core keeps it: an embedding of another width becomes padding."""
    data = token.get("data") if isinstance(token, dict) else token
    if not isinstance(data, torch.Tensor):
        return 1, isinstance(token, numbers.Integral)
    return data.numel() // data.shape[-1], width is None or data.shape[-1] == width


def clean_subject(clip, subject: str) -> str:
    """The subject as plain words, without prompt weights and punctuation around it; brackets inside it are escaped.

    ValueError if no word is left.
    """
    check_clip(clip)
    layout = next(iter(read_layouts(clip, clip.tokenize(subject)).values()))
    words = [word.text for word in layout.words]
    while words and not _is_word(words[-1]):
        words.pop()
    while words and not _is_word(words[0]):
        words.pop(0)
    if not words:
        raise ValueError(
            f'The subject "{subject}" holds no word: enter the word of the prompt that names the person, such as '
            '"woman".'
        )
    return escaped(" ".join(words))


def subject_in(clip, tokens: dict, subject: str) -> str:
    """`clean_subject` for the text that became `tokens`: brackets are prompt weights, or characters where the text has
    them so ("miku (vocaloid)" in "miku \\(vocaloid\\), smile")."""
    layouts = read_layouts(clip, tokens)
    for reading in (subject, escaped(subject)):
        cleaned = clean_subject(clip, reading)
        wanted = read_layouts(clip, clip.tokenize(cleaned))
        if all(_columns(layout, wanted[key].words) for key, layout in layouts.items()):
            return cleaned
    return clean_subject(clip, subject)


def find_subject(clip, tokens: dict, subject: str, occurrence: int) -> int:
    """Column of the last sub-token of `subject` in the conditioning that `tokens` are encoded to.

    subject: one or more words (`clean_subject`).
    occurrence: which of its repetitions; 0 is the first, negative counts from the end.
    ValueError, with the words that are there, where it is not; and if SDXL's two encoders have it in different columns.
    """
    wanted = read_layouts(clip, clip.tokenize(subject))
    columns = {
        key: _find(layout, wanted[key].words, subject, occurrence) for key, layout in read_layouts(clip, tokens).items()
    }
    if len(set(columns.values())) > 1:
        raise ValueError(
            f'The two text encoders of this CLIP have "{subject}" in different places, because an embedding before it '
            "fits one of them only: move the embedding behind the subject or use one made for this model."
        )
    return next(iter(columns.values()))


def _find(layout: Layout, wanted: tuple[Word, ...], subject: str, occurrence: int) -> int:
    found = _columns(layout, wanted)
    if not found:
        known = list(dict.fromkeys(word.text for word in layout.words if _is_word(word.text)))
        listed = ", ".join(known[:_WORDS_SHOWN]) + (", …" if len(known) > _WORDS_SHOWN else "")
        raise ValueError(
            f'The text does not hold the subject "{subject}": choose one of its words, which are {listed or "none"}.'
        )
    if not -len(found) <= occurrence < len(found):
        times = "once" if len(found) == 1 else f"{len(found)} times"
        raise ValueError(
            f'The text holds "{subject}" {times}, so there is no occurrence {occurrence + 1}: lower occurrence to '
            f"{len(found)} or less, or write the word once more."
        )
    column = found[occurrence]
    if column is None:
        raise ValueError(
            f'"{subject}" shares a token with the letters beside it: put a space before and behind it in the text.'
        )
    return column


def _columns(layout: Layout, wanted: tuple[Word, ...]) -> list[int | None]:
    """Column of each place where a subject stands; None where its last token is not its own."""
    words, size, ids = layout.words, len(wanted), [word.ids for word in wanted]
    return [
        words[i + size - 1].column
        for i in range(len(words) - size + 1)
        if [word.ids for word in words[i : i + size]] == ids
    ] or _inside(words, [word.text for word in wanted])


def _inside(words: tuple[Word, ...], wanted: list[str]) -> list[int | None]:
    """Columns of a subject in text that is written without spaces; None where its last token is not its own."""
    found = places([word.text for word in words], wanted)
    return [_column_inside(words[place.last], place.start, place.end) for place in found]


def _column_inside(word: Word, start: int, end: int) -> int | None:
    """Column of the token with the last byte of characters start..end; None where it holds others' bytes as well."""
    first, last = len(word.text[:start].encode()), len(word.text[:end].encode())
    at = 0
    for size, column in word.pieces:
        if at < last <= at + size:
            return column if first <= at and at + size == last else None
        at += size
    return None


def _is_word(text: str) -> bool:
    return any(character.isalnum() for character in text)
