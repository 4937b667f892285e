"""Detectors of people and captioners of the user's own, loaded by transformers from local folders."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image


def folder(name: str) -> Path:
    """ValueError where there is none: nothing is downloaded."""
    path = Path(name).expanduser()
    if not path.is_dir():
        raise ValueError(f"There is no folder {name}: download the model and give the folder it lies in.")
    return path


class Persons:
    """An object detector such as RT-DETR, D-FINE, DETR or YOLOS whose labels hold "person"."""

    def __init__(self, name: str, score: float) -> None:
        """score: least score of a box."""
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        place, self.score = folder(name), score
        self.processor = AutoImageProcessor.from_pretrained(place, local_files_only=True)
        self.model = AutoModelForObjectDetection.from_pretrained(place, local_files_only=True).eval()
        labels = self.model.config.id2label
        self.person = next((number for number, label in labels.items() if label.lower() == "person"), None)
        if self.person is None:
            raise ValueError(f"The model in {name} has no label `person`: give a detector of people.")

    @torch.no_grad()
    def __call__(self, picture: Image.Image) -> list[tuple[float, ...]]:
        """Boxes of people (x0, y0, x1, y1), pixels of the picture."""
        outputs = self.model(**self.processor(images=picture, return_tensors="pt"))
        (found,) = self.processor.post_process_object_detection(
            outputs, threshold=self.score, target_sizes=[picture.size[::-1]]
        )
        pairs = zip(found["boxes"].tolist(), found["labels"].tolist(), strict=True)
        return [tuple(box) for box, label in pairs if label == self.person]


class Captions:
    """A captioner such as BLIP."""

    def __init__(self, name: str, tokens: int) -> None:
        """tokens: most that a caption may have."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        place, self.tokens = folder(name), tokens
        self.processor = AutoProcessor.from_pretrained(place, local_files_only=True)
        self.model = AutoModelForImageTextToText.from_pretrained(place, local_files_only=True).eval()

    @torch.no_grad()
    def __call__(self, picture: Image.Image) -> str:
        inputs = self.processor(images=picture, return_tensors="pt")
        tokens = self.model.generate(**inputs, max_new_tokens=self.tokens, do_sample=False)
        return self.processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()
