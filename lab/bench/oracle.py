"""The oracle word: what `make words` says of a held-out person in the noun's place; any encoder's upper bound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ...sampling.record import RECORDS_KEY, records_of
from ..learning.words import Words, known, shape_size
from ..world.shards import HELD_OUT


class Oracle:
    """state: of the run of `make words` by which the base was taught."""

    def __init__(self, state: Path) -> None:
        self.words = Words(shape_size()).taught(state)

    def word(self, person: int) -> torch.Tensor:
        """[D] of the held-out person of this number."""
        return self.words(self.words.descriptions(*known([HELD_OUT + person])))[0]

    def said(self, positive: list, person: int) -> list:
        """A conditioning of Pivot Conditioning without an encoder, in which the word stands where a pivot would: in the
        prompt, and in what the reference's features are made with."""
        word, told = self.word(person), []
        for states, options in positive:
            records = []
            for record in records_of(options):
                states = with_word(states, record.token_index, word)
                ((reference, more), *rest) = record.reference_conditioning
                reference = with_word(reference, record.reference_token_index, word)
                records.append(replace(record, reference_conditioning=[[reference, more], *rest]))
            told.append([states, {**options, RECORDS_KEY: tuple(records)}])
        return told


def with_word(states: torch.Tensor, column: int, word: torch.Tensor) -> torch.Tensor:
    """[1, T, D] with `word` [D] added at one column."""
    states = states.clone()
    states[:, column] += word.to(states)
    return states
