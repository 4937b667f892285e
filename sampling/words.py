"""The words of a text as CLIP's tokenizer splits them, so that captions and prompts are read alike.

Needs no vocabulary: the expression is CLIP's own (openai/CLIP, simple_tokenizer.py), over NFC and lower case.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import regex

SUBJECTS = (
    "woman", "man", "girl", "boy", "lady", "gentleman", "guy", "person", "bride", "groom", "actress", "actor", "child",
    "kid", "teenager", "grandmother", "grandfather", "mother", "father", "model", "face",
)  # fmt: skip
"""Nouns that are looked for in a caption; the one that comes first in it is the subject."""
WEAK = ("model", "face")
"""Nouns that may also mean a thing ("3d model", "clock face") or a part: taken only where no other one is."""

_WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
_SPACELESS = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
"""Scripts that write words without spaces between them, or tie particles to a noun."""


@dataclass(frozen=True)
class Place:
    """Where a subject stands: in words first..last, of the last one its characters start..end."""

    first: int
    last: int
    start: int
    end: int


def words_of(text: str) -> list[str]:
    """Words, digits and runs of punctuation; prompt weights and escapes are plain characters here."""
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


def places(words: Sequence[str], wanted: Sequence[str]) -> list[Place]:
    """Where the words `wanted` stand in `words`: as whole words, else inside text that is written without spaces."""
    size = len(wanted)
    if not size:
        return []
    spans = [(i, words[i : i + size]) for i in range(len(words) - size + 1)]
    whole = [Place(i, i + size - 1, 0, len(span[-1])) for i, span in spans if list(span) == list(wanted)]
    if whole:
        return whole
    if size == 1:
        return [
            Place(i, i, at, at + len(wanted[0]))
            for i, word in enumerate(words)
            for at in (match.start() for match in regex.finditer(regex.escape(wanted[0]), word))
            if _may_part(word, at) and _may_part(word, at + len(wanted[0]))
        ]
    return [
        Place(i, i + size - 1, 0, len(wanted[-1]))
        for i, span in spans
        if span[0].endswith(wanted[0]) and _may_part(span[0], len(span[0]) - len(wanted[0]))
        if span[-1].startswith(wanted[-1]) and _may_part(span[-1], len(wanted[-1]))
        if list(span[1:-1]) == list(wanted[1:-1])
    ]


def _may_part(word: str, at: int) -> bool:
    """Whether one word may end and another begin before the character `at`."""
    return at in (0, len(word)) or _SPACELESS.search(word[at - 1 : at + 1]) is not None


def has_word(text: str, subject: str) -> bool:
    """Whether the subject, one word or several, stands in a text. Weights and escapes around it do not matter."""
    wanted = words_of(plain(subject))
    return any(word.isalnum() for word in wanted) and bool(places(words_of(plain(text)), wanted))


def find_noun(caption: str, subjects: Sequence[str] = SUBJECTS) -> str | None:
    """The first of the subjects in a caption, in lower case; a weak one only where there is no other."""
    words = words_of(plain(caption))
    found = [
        (subject.lower() in WEAK, place.first, -len(subject), subject)
        for subject in subjects
        for place in places(words, words_of(plain(subject)))
    ]
    return min(found)[-1] if found else None


def plain(text: str) -> str:
    """Brackets without the backslashes by which a prompt says that they are no weights."""
    return regex.sub(r"\\([()])", r"\1", text)


def escaped(text: str) -> str:
    """The prompt in which every bracket is a character and none is a weight."""
    return regex.sub(r"[()]", r"\\\g<0>", plain(text))
