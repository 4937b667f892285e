"""Base text, target and complete text of SPF-Portrait, the phrases of a text, and the columns that they take.

The complete text is the base text, a comma and the target, always in this order: CLIP reads from left to right, so the
base text's states are then the same with and without the target.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .tokens import Layout, check_clip, read_layouts
from .words import escaped

Span = tuple[int, int]
"""Columns: the first, and one past the last."""
CUTS = "in front of|in|on|at|with|under|behind|beside|near|wearing|holding|by"
"""Words before which a text is cut into phrases; they belong to none."""
_CUT = re.compile(rf"[,;]|\b(?:{CUTS})\b", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:an?|the)\b", re.IGNORECASE)
_MARK = re.compile(r"\[\[(.+?)\]\]")
_EDGE = " ,.;:!?\n\t"
TOKENS = 77
"""Columns of one chunk of CLIP's: a start token, 75 of the text, an end token."""


@dataclass(frozen=True)
class Columns:
    """Where the parts of a complete text stand. base: how many columns the base text has, from 1 on. end: of the end
    token. target: the target's. phrases: of those phrases of the base text that were found; names: their words."""

    base: int
    end: int
    target: Span
    phrases: tuple[Span, ...]
    names: tuple[str, ...]


def base_text(caption: str, target: str) -> str:
    """A caption without the target, and without what joined it ("with", "wearing", a comma); "" if nothing is left."""
    words = r"\s+".join(map(re.escape, target.split()))
    joined = rf"(?:\s*,\s*(?:and\s+)?|\s+(?:with|wearing|and)\s+|\s+|^)\b{words}\b" if words else r"(?!)"
    rest = re.sub(joined, "", caption, flags=re.IGNORECASE)
    return re.sub(r"\s+", " ", rest).strip(_EDGE)


def complete_text(base: str, target: str) -> str:
    """CLIP makes one token of a comma and a sign before it, which then would not be the base text's."""
    base = base.strip(_EDGE)
    return f"{base}{', ' if base[-1:].isalnum() else ' , '}{target.strip(_EDGE)}"


def marked(caption: str) -> tuple[str, str]:
    """A caption with its target in double brackets, "a man, [[wearing a hat]]": the plain caption, and the target, or
    "" where nothing is marked."""
    found = _MARK.search(caption)
    return (_MARK.sub(r"\1", caption), found[1].strip()) if found else (caption, "")


def phrases_of(text: str) -> list[str]:
    """The phrases of a text, without articles: "a man in a red shirt in a forest" has man, red shirt, forest."""
    parts = (_ARTICLE.sub("", part.strip(_EDGE)).strip(_EDGE) for part in _CUT.split(text))
    return [part for part in parts if part]


def columns_of(clip: object, base: str, target: str, phrases: Sequence[str]) -> Columns:
    """Where everything stands in the complete text, by ComfyUI's own tokens. Phrases that are not in the base text are
    left out.

    ValueError where there is no target or no base text, and where both do not fit into one chunk.
    """
    check_clip(clip)
    base, target = base.strip(_EDGE), target.strip(_EDGE)
    if not base or not target:
        missing = "base text" if not base else "target text"
        raise ValueError(f"The {missing} holds no word: describe the picture in the base text, and name the attribute "
                         'in the target text, such as "wearing a hat".')  # fmt: skip
    short, long, *parts = (
        next(iter(read_layouts(clip, clip.tokenize(escaped(text))).values()))
        for text in (base, complete_text(base, target), *phrases)
    )
    if len(long.ends) > 1 or not long.ends:
        raise ValueError(
            f"The base text and the target are too long together: one chunk of CLIP holds {TOKENS - 2} tokens; shorten "
            "the base text."
        )
    count = short.ends[0] - 1
    found = {name: span for name, part in zip(phrases, parts, strict=True) if (span := _place(short, part))}
    comma = count + 1
    return Columns(count, long.ends[0], (comma + 1, long.ends[0]), tuple(found.values()), tuple(found))


def _place(text: Layout, part: Layout) -> Span | None:
    """The columns of a part's words in a text, where they first stand."""
    wanted = [word.ids for word in part.words]
    for start in range(len(text.words) - len(wanted) + 1) if wanted else ():
        words = text.words[start : start + len(wanted)]
        if [word.ids for word in words] == wanted:
            return words[0].column - len(words[0].ids) + 1, words[-1].column + 1
    return None
