"""How mtcnn.safetensors was made; needed by nobody who uses the pack.

    pip download --no-deps facenet-pytorch==2.6.0 && unzip facenet_pytorch-*.whl
    python convert_mtcnn.py facenet_pytorch/data mtcnn.safetensors

The published weights come from Caffe's column-major layout: their first dense layers expect features flattened as
width, height, channels. The conversion puts them into PyTorch's order, so that our networks need no odd transposition.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

NAMES = {
    "pnet": {"conv4_1": "face", "conv4_2": "box"},
    "rnet": {"dense4": "dense", "dense5_1": "face", "dense5_2": "box"},
    "onet": {"dense5": "dense", "dense6_1": "face", "dense6_2": "box", "dense6_3": "points"},
}
SLOPES = {"rnet": {"prelu4": "dense"}, "onet": {"prelu4": "conv4", "prelu5": "dense"}}
DENSE_GRID = {"rnet": (64, 3), "onet": (128, 3)}
"""Channels and side of the feature map that enters the first dense layer."""


def convert(folder: Path) -> dict[str, torch.Tensor]:
    """One flat dictionary of the three networks: `<net>.<layer>.{weight,bias,slope}`, slope being PReLU's."""
    tensors = {}
    for net, names in NAMES.items():
        for key, value in torch.load(folder / f"{net}.pt", weights_only=True, map_location="cpu").items():
            layer, kind = key.rsplit(".", 1)
            if layer.startswith("prelu"):
                layer, kind = SLOPES.get(net, {}).get(layer, layer.replace("prelu", "conv")), "slope"
            layer = names.get(layer, layer)
            if layer == "dense" and kind == "weight":
                channels, side = DENSE_GRID[net]
                value = value.view(-1, side, side, channels).permute(0, 3, 2, 1).reshape(value.shape)
            tensors[f"{net}.{layer}.{kind}"] = value.contiguous()
    return tensors


if __name__ == "__main__":
    save_file(
        convert(Path(sys.argv[1])),
        sys.argv[2],
        metadata={
            "format": "pt",
            "model": "MTCNN (Zhang et al., Joint Face Detection and Alignment using Multi-task Cascaded CNNs, 2016)",
            "source": "facenet-pytorch 2.6.0, data/pnet.pt, rnet.pt, onet.pt; dense layers put into channels, height, "
            "width order",
            "license": "MIT, Copyright (c) 2019 Timothy Esler",
        },
    )
