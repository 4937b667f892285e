"""Which part of a picture the sampler samples: all of it, or what a noise mask leaves."""

from __future__ import annotations

import torch


class NoiseMask:
    """A run's noise mask. mask: as the sampler is given it, of any size, or None. noise: [B, C, H, W]. sigmas: the
    sampler's."""

    def __init__(self, guider: object, mask: torch.Tensor | None, noise: torch.Tensor, sigmas: torch.Tensor) -> None:
        self._guider, self._sigmas, self._mask = guider, sigmas, None
        if mask is not None:
            import comfy.sampler_helpers

            self._mask = comfy.sampler_helpers.prepare_mask(mask.float(), noise.shape, "cpu")

    def sampled(self, sigma: torch.Tensor, model_options: dict | None) -> torch.Tensor | None:
        """Boolean [B, 1, H, W] on the CPU, where anything is sampled at sigma [B]; None where everything is.

        Differential diffusion samples more and more of a soft mask.
        """
        if self._mask is None:
            return None
        mask, change = self._mask, (model_options or {}).get("denoise_mask_function")
        if change is not None:
            options = {"model": self._guider, "sigmas": self._sigmas}
            mask = change(sigma, mask.to(sigma.device), extra_options=options).cpu()
        return (mask > 0).any(dim=1, keepdim=True)
