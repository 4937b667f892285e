"""How weights/face_embedder.safetensors was made; needed by nobody who uses it.

    npm pack @vladmandic/face-api@1.7.15 && tar xzf vladmandic-face-api-1.7.15.tgz
    python run.py make embedder package

The package stores 8-bit tensors, each with a scale and a minimum, beside a few in full precision. They stay as they
are: only names and the order of axes become PyTorch's. A tensor `<name>` of 8 bits stands for
`<name> * range[0] + range[1]` with range = `<name>.range`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

OUT = Path(__file__).parents[2] / "models" / "faces" / "weights" / "face_embedder.safetensors"
KINDS = {"conv/filters": "kernel", "conv/bias": "bias", "scale/weights": "scale", "scale/biases": "shift"}
BLOCKS = [
    f"conv{width}_{which}"
    for width, plain in ((32, 3), (64, 3), (128, 2), (256, 2))
    for which in ("down" if width > 32 else None, *range(1, plain + 1))
    if which
] + ["conv256_down_out"]
"""The residual blocks in their order. conv32_down is the stem."""
METADATA = {
    "format": "pt",
    "model": "dlib's 29-layer ResNet, dlib_face_recognition_resnet_model_v1 (Davis E. King, CC0)",
    "source": "npm @vladmandic/face-api 1.7.15, model/face_recognition_model.bin; 8-bit tensors kept, axes put into "
    "PyTorch's order",
    "license": "MIT, Copyright (c) Vladimir Mandic (face_embedder.LICENSE)",
}


def renamed(name: str) -> str:
    """Our name of a tensor: conv64_1/conv2/scale/biases → blocks.4.second.shift."""
    if name == "fc":
        return "head.weight"
    block, inner, kind = re.fullmatch(r"(\w+?)/(?:conv([12])/)?(\w+/\w+)", name).groups()
    layer = "stem" if inner is None else f"blocks.{BLOCKS.index(block)}.{'first' if inner == '1' else 'second'}"
    return f"{layer}.{KINDS[kind]}"


def convert(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the package's `model` folder under our names."""
    (group,) = json.loads((folder / "face_recognition_model-weights_manifest.json").read_text())
    raw, at, tensors = (folder / "face_recognition_model.bin").read_bytes(), 0, {}
    for entry in group["weights"]:
        quantised = entry.get("quantization")
        values = np.frombuffer(raw, np.uint8 if quantised else "<f4", int(np.prod(entry["shape"])), at)
        at += values.nbytes
        tensor = torch.from_numpy(values.reshape(entry["shape"]).copy())
        name = renamed(entry["name"])
        tensors[name] = (tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor.t()).contiguous()
        if quantised:
            tensors[f"{name}.range"] = torch.tensor([quantised["scale"], quantised["min"]])
    if at != len(raw):
        raise SystemExit(f"{folder} holds {len(raw)} bytes of weights and its manifest names {at}.")
    return tensors


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("package", type=Path, help="the unpacked npm folder")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(words)
    save_file(convert(options.package / "model"), str(options.out), METADATA)
    shutil.copyfile(options.package / "LICENSE", options.out.with_suffix(".LICENSE"))
