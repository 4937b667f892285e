"""A workflow in API format."""

from __future__ import annotations


def node(kind: str, title: str = "", **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs} | ({"_meta": {"title": title}} if title else {})


def graph(**more) -> dict:
    """A portrait by two conditionings, behind a ControlNet, and a second picture that nobody asked for."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="a.safetensors"),
        "2": node("LoadImage", image="photo.png"),
        "3": node("CLIPTextEncode", clip=["1", 1], text="a woman"),
        "4": node("CLIPTextEncode", clip=["1", 1], text="ugly"),
        "5": node("ControlNetApplyAdvanced", positive=["3", 0], negative=["4", 0], image=["2", 0]),
        "6": node("KSampler", model=["1", 0], seed=1, positive=["5", 0], negative=["5", 1], steps=20, cfg=7.0),
        "7": node("VAEDecode", samples=["6", 0], vae=["1", 2]),
        "8": node("SaveImage", images=["7", 0], filename_prefix="x"),
        "9": node("PreviewImage", images=["2", 0]),
    } | more
