"""Does the picture show what the prompt says: two small classifiers, trained on renders only.

One reads the whole picture (background, garment, colour), the other the aligned face (expression, subject), since in
the whole picture a smile is a few pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ...models.faces.embedder import align, find_landmarks

WEIGHTS = Path(__file__).parents[2] / "demo" / "weights" / "text_measure.safetensors"
SCENE, FACE = ("background", "garment", "colour"), ("expression", "subject")
HEADS = SCENE + FACE
SIDE, FACE_SIDE = 128, 96
WIDTHS, TOP = (16, 32, 64, 96), 128

Classes = dict[str, tuple[str, ...]]
Landmarks = Sequence[torch.Tensor | None]


class Reader(nn.Module):
    """Pictures [B, 3, S, S] in 0..1 to logits [B, classes] for each head, a third of a million parameters.

    Every head looks at the picture with an attention of its own: a shirt and the sky are in different places.
    """

    def __init__(self, classes: Classes) -> None:
        super().__init__()
        layers, inputs = [], 3
        for width in WIDTHS:
            layers.append(_layer(inputs, width, 2))
            if inputs > 3:
                layers.append(_layer(width, width))
            inputs = width
        self.body = nn.Sequential(*layers, _layer(inputs, TOP))
        self.look = nn.Conv2d(TOP, len(classes), 1)
        self.heads = nn.ModuleDict({head: nn.Linear(TOP, len(words)) for head, words in classes.items()})

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body(pictures * 2 - 1)
        look = self.look(features).flatten(2).softmax(-1)
        seen = torch.einsum("bhp,bcp->hbc", look, features.flatten(2))
        return {head: layer(seen[i]) for i, (head, layer) in enumerate(self.heads.items())}


class TextMeasure(nn.Module):
    """Both readers, and the words of each of HEADS."""

    def __init__(self, classes: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        self.classes: Classes = {head: tuple(classes[head]) for head in HEADS}
        self.scene, self.face = (Reader({head: self.classes[head] for head in heads}) for heads in (SCENE, FACE))

    def forward(self, scenes: torch.Tensor, faces: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [B, classes] for each head from what `scenes` and `faces` give."""
        return {**self.scene(scenes), **self.face(faces)}

    @torch.no_grad()
    def agreement(
        self, pictures: torch.Tensor, wanted: Sequence[Mapping[str, str]], landmarks: Landmarks | None = None
    ) -> dict[str, torch.Tensor]:
        """Which of the pictures [B, 3, H, W] in 0..1 show the wanted word: for each head a bool tensor [B].

        wanted: one word for each head and picture, as in a rendered portrait's description. ValueError names a word
        that no class bears. landmarks: five a picture, [5, 2]; found here where not given. A picture without a face
        shows neither expression nor subject.
        """
        if landmarks is None:
            landmarks = [find_landmarks(picture) for picture in pictures]
        there = torch.tensor([five is not None for five in landmarks])
        answers = {}
        for head, logits in self(scenes(pictures), faces(pictures, landmarks)).items():
            goal = torch.tensor([self.index(head, words[head]) for words in wanted])
            right = logits.argmax(1).cpu() == goal
            answers[head] = right & there if head in FACE else right
        return answers

    def index(self, head: str, word: str) -> int:
        """The class of a word. ValueError names the words there are."""
        if word not in self.classes[head]:
            raise ValueError(f"The text measure knows no {head} {word!r}: use one of {', '.join(self.classes[head])}.")
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


def scenes(pictures: torch.Tensor) -> torch.Tensor:
    """Whole pictures [B, 3, H, W] at the size that the reader of scenes takes."""
    return _resized(pictures, SIDE)


def faces(pictures: torch.Tensor, landmarks: Landmarks) -> torch.Tensor:
    """The aligned faces [B, 3, 96, 96] in pictures [B, 3, H, W]; black where there is no face."""
    chips = pictures.new_zeros(len(pictures), 3, FACE_SIDE, FACE_SIDE)
    seen = [i for i, five in enumerate(landmarks) if five is not None]
    if seen:
        chips[seen] = _resized(align(pictures[seen], torch.stack([landmarks[i] for i in seen])), FACE_SIDE)
    return chips


def _resized(pictures: torch.Tensor, side: int) -> torch.Tensor:
    if pictures.shape[-2:] == (side, side):
        return pictures
    return F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
