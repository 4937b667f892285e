"""ComfyUI-OmniPortrait: portraits of a given person, from one photo and a prompt (OmniPortrait, ICLR 2026).

This file only registers the pack with ComfyUI. Nothing of ComfyUI is imported before ComfyUI asks for the nodes, so
that the pure maths in `guidance/` can be imported and tested without it.
"""

from __future__ import annotations

WEB_DIRECTORY = "web"


async def comfy_entrypoint():
    """V3 entry point: registers our folders of models and returns the extension that lists the nodes."""
    from .nodes import extension, register_model_folders

    register_model_folders()
    return extension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
