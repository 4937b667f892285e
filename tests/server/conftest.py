"""Tests against a real ComfyUI server."""

from omniportrait import run

run.use_comfyui()
