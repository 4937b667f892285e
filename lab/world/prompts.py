"""Thirty prompts for evaluation: no portrait of the training set (seed 0) shows such a combination."""

from __future__ import annotations

from dataclasses import dataclass

from .view import describe


@dataclass(frozen=True)
class Prompt:
    """What a generated picture should show; `text` puts it into words for a subject."""

    expression: str
    colour: str
    garment: str
    background: str

    def text(self, subject: str) -> str:
        return describe(subject, self.expression, self.colour, self.garment, self.background)


HELD_OUT_PROMPTS = (
    Prompt("neutral", "green", "polka dot dress", "library"),
    Prompt("smiling", "pink", "denim jacket", "grey studio"),
    Prompt("laughing", "green", "v-neck sweater", "beach"),
    Prompt("sad", "pink", "apron", "kitchen"),
    Prompt("angry", "red", "checked shirt", "blue sky"),
    Prompt("surprised", "turquoise", "hoodie", "library"),
    Prompt("pouting", "brown", "tank top", "grey studio"),
    Prompt("winking", "yellow", "checked shirt", "aquarium"),
    Prompt("sleeping", "brown", "denim jacket", "kitchen"),
    Prompt("neutral", "yellow", "turtleneck", "autumn park"),
    Prompt("smiling", "purple", "polka dot dress", "snowy field"),
    Prompt("laughing", "red", "t-shirt", "mountains"),
    Prompt("sad", "pink", "denim jacket", "library"),
    Prompt("angry", "red", "striped shirt", "grey studio"),
    Prompt("surprised", "blue", "polka dot dress", "aquarium"),
    Prompt("pouting", "red", "checked shirt", "kitchen"),
    Prompt("winking", "purple", "denim jacket", "lavender field"),
    Prompt("sleeping", "white", "striped shirt", "city at night"),
    Prompt("neutral", "green", "suit", "mountains"),
    Prompt("smiling", "pink", "v-neck sweater", "forest"),
    Prompt("laughing", "yellow", "turtleneck", "desert"),
    Prompt("sad", "brown", "apron", "aquarium"),
    Prompt("angry", "yellow", "suit", "garden"),
    Prompt("surprised", "purple", "v-neck sweater", "red curtain"),
    Prompt("pouting", "yellow", "hoodie", "city at night"),
    Prompt("winking", "purple", "tank top", "mountains"),
    Prompt("sleeping", "white", "t-shirt", "forest"),
    Prompt("neutral", "turquoise", "hoodie", "kitchen"),
    Prompt("smiling", "brown", "tank top", "blue sky"),
    Prompt("laughing", "orange", "t-shirt", "library"),
)
