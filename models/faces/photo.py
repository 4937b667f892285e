"""What people connect (any channels, range, mask) made into one photograph and one mask, or one kind sentence."""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F

MIN_PHOTO_SIDE = 32

log = logging.getLogger(__name__)


def prepare_photo(image: torch.Tensor) -> torch.Tensor:
    """IMAGE [B, H, W, C] → photograph [3, H, W], float32 in 0..1 on the CPU; one picture of a batch.

    Grey is expanded, transparency is laid over mid-grey, values outside of 0..1 are clipped.
    Raises ValueError for an empty or tiny picture, for NaN or Inf, and for more than four channels.
    """
    if image.ndim != 4 or 0 in image.shape:
        raise ValueError(
            f"Face Reference needs one photograph, but the image is empty or has the shape "
            f"{tuple(image.shape)}; connect an IMAGE such as Load Image gives."
        )
    height, width, channels = image.shape[1:]
    if channels > 4:
        raise ValueError(
            f"The image has {channels} channels, but a photograph has 1 (grey), 3 (colour) or 4 (with "
            "alpha); convert it before Face Reference."
        )
    if min(height, width) < MIN_PHOTO_SIDE:
        raise ValueError(
            f"The photograph is only {width} x {height} pixels, but Face Reference needs at least "
            f"{MIN_PHOTO_SIDE} on each side; connect a larger one."
        )
    photo = image[0].detach().to(device="cpu", dtype=torch.float32).movedim(-1, 0)
    if not bool(torch.isfinite(photo).all()):
        raise ValueError(
            "The photograph contains NaN or infinite values, usually from a failed decode before it; "
            "check the node that makes this image."
        )
    low, high = float(photo.min()), float(photo.max())
    if low < 0 or high > 1:
        if low < -0.01 or high > 1.01:
            log.warning("Face Reference: image values run from %.3g to %.3g and are clipped to 0..1.", low, high)
        photo = photo.clamp(0, 1)
    if channels in (2, 4):
        alpha = photo[-1:]
        photo = photo[:-1] * alpha + 0.5 * (1 - alpha)
    return photo.expand(3, -1, -1).contiguous()


def prepare_mask(mask: torch.Tensor | None, height: int, width: int) -> torch.Tensor | None:
    """MASK of any size → [H, W] float32 in 0..1 at the photograph's size; None for an empty one, with a warning.

    Raises ValueError for NaN or Inf and for a shape that is no mask.
    """
    if mask is None:
        return None
    mask = mask.detach().to(device="cpu", dtype=torch.float32)
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim not in (2, 3) or 0 in mask.shape:
        raise ValueError(
            f"The face mask has the shape {tuple(mask.shape)}, but a MASK is batch x height x width; "
            "connect the MASK output of a mask node, or none."
        )
    mask = mask if mask.ndim == 2 else mask[0]
    if not bool(torch.isfinite(mask).all()):
        raise ValueError(
            "The face mask contains NaN or infinite values; check the node that makes it, or connect none."
        )
    mask = mask.clamp(0, 1)
    if float(mask.max()) < 0.01:
        log.warning("Face Reference: the connected mask is empty and is ignored.")
        return None
    if mask.shape != (height, width):
        mask = F.interpolate(mask[None, None], (height, width), mode="bilinear", antialias=True)[0, 0].clamp(0, 1)
    return mask
