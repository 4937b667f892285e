"""Does the picture show what the prompt says: a small classifier with one head a question, trained on renders only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

WEIGHTS = Path(__file__).parents[1] / "weights" / "text_measure.safetensors"
HEADS = ("background", "garment", "colour", "expression", "subject")
SIDE = 128
WIDTHS = (16, 32, 64, 128)
TOP = 192

Classes = dict[str, tuple[str, ...]]


class TextMeasure(nn.Module):
    """Pictures [B, 3, 128, 128] in 0..1 to logits [B, classes] for each head, half a million parameters.

    Every head looks at the picture with an attention of its own: a shirt and a smile are in different places.
    """

    def __init__(self, classes: Mapping[str, Sequence[str]]) -> None:
        """classes: the words of each of HEADS."""
        super().__init__()
        self.classes: Classes = {head: tuple(classes[head]) for head in HEADS}
        layers, inputs = [], 3
        for width in WIDTHS:
            layers.append(_layer(inputs, width, 2))
            if inputs > 3:
                layers.append(_layer(width, width))
            inputs = width
        self.body = nn.Sequential(*layers, _layer(inputs, TOP))
        self.look = nn.Conv2d(TOP, len(HEADS), 1)
        self.heads = nn.ModuleDict({head: nn.Linear(TOP, len(words)) for head, words in self.classes.items()})

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body(pictures * 2 - 1)
        look = self.look(features).flatten(2).softmax(-1)
        seen = torch.einsum("bhp,bcp->hbc", look, features.flatten(2))
        return {head: layer(seen[i]) for i, (head, layer) in enumerate(self.heads.items())}

    @torch.no_grad()
    def probabilities(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        """[B, classes] for each head, of pictures [B, 3, H, W] in 0..1 of any size."""
        return {head: logits.softmax(1) for head, logits in self(prepared(pictures)).items()}

    def agreement(self, pictures: torch.Tensor, wanted: Sequence[Mapping[str, str]]) -> dict[str, torch.Tensor]:
        """Which of the pictures [B, 3, H, W] show the wanted word: for each head a bool tensor [B].

        wanted: one word for each head and picture, as in a rendered portrait's description. ValueError names a word
        that no class bears.
        """
        answers = {}
        for head, shares in self.probabilities(pictures).items():
            goal = [self.index(head, words[head]) for words in wanted]
            answers[head] = shares.argmax(1) == torch.tensor(goal, device=shares.device)
        return answers

    def index(self, head: str, word: str) -> int:
        """The class of a word. ValueError names the words there are."""
        if word not in self.classes[head]:
            raise ValueError(
                f"The text measure knows no {head} {word!r}: use one of {', '.join(self.classes[head])}."
            )
        return self.classes[head].index(word)

    def save(self, file: str | Path, metadata: Mapping[str, str]) -> None:
        """Write the weights in half precision, with the words of each head and the model card's lines."""
        from safetensors.torch import save_file

        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        save_file(halves, str(file), {"format": "pt", "classes": json.dumps(self.classes), **metadata})

    @classmethod
    def load(cls, file: str | Path = WEIGHTS) -> TextMeasure:
        """What `save` wrote, ready to measure."""
        from safetensors import safe_open

        with safe_open(str(file), "pt") as opened:
            model = cls(json.loads(opened.metadata()["classes"]))
            model.load_state_dict({name: opened.get_tensor(name) for name in opened.keys()})
        return model.requires_grad_(False).eval()


def _layer(inputs: int, width: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def prepared(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [B, 3, H, W] at the size that the classifier reads."""
    if pictures.shape[-2:] == (SIDE, SIDE):
        return pictures
    return F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True)
