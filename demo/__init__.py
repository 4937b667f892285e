"""The demo as a custom node folder: teaches ComfyUI the demo model's architecture. It has no nodes of its own."""

from __future__ import annotations


async def comfy_entrypoint():
    """V3 entry point. An extension without nodes: with none at all ComfyUI would log IMPORT FAILED."""
    from comfy_api.latest import ComfyExtension

    from .architecture import register

    class DemoExtension(ComfyExtension):
        async def get_node_list(self) -> list[type]:
            return []

    register()
    return DemoExtension()


__all__ = ["comfy_entrypoint"]
