"""What a node shows of its results inside itself, on every ComfyUI since 0.3.64."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from comfy_api.latest import io, ui


def shown(pictures: Iterable[torch.Tensor] = (), text: str = "") -> dict:
    """Pictures, each IMAGE [B, H, W, 3] of any size, and a line of text, as ComfyUI tells them to its page.

    Not by ui.PreviewImage, which draws its file's name from Python's random numbers.
    """
    save, folder = ui.ImageSaveHelper.save_images, io.FolderType.temp
    images = [each for picture in pictures for each in save(picture, "omniportrait", folder, cls=None)]
    told = ui.SavedImages(images).as_dict() if images else {}
    return told | (ui.PreviewText(text).as_dict() if text else {})
