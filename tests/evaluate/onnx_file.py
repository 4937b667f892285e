"""Writes a small ONNX file by hand: the format is protocol buffers, and no package of ours writes it."""

from __future__ import annotations

import numpy as np

FLOAT, INT, STRING = 1, 2, 3


def varint(value: int) -> bytes:
    out = bytearray()
    while True:
        out.append(value & 127 | (128 if value > 127 else 0))
        value >>= 7
        if not value:
            return bytes(out)


def field(number: int, content: bytes | str | int) -> bytes:
    """One field of a message: a number, or a length and bytes."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def value_info(name: str, shape: tuple[int, ...]) -> bytes:
    dimensions = b"".join(field(1, field(1, size)) for size in shape)
    return field(1, name) + field(2, field(1, field(1, FLOAT) + field(2, dimensions)))


def tensor(name: str, values: np.ndarray) -> bytes:
    sizes = b"".join(field(1, size) for size in values.shape)
    return sizes + field(2, FLOAT) + field(8, name) + field(9, values.astype("<f4").tobytes())


def node(kind: str, inputs: list[str], output: str) -> bytes:
    return b"".join(field(1, name) for name in inputs) + field(2, output) + field(4, kind)


def projection(weights: np.ndarray, shape: tuple[int, ...]) -> bytes:
    """A model that flattens its input [shape] and multiplies it with weights [M, D]."""
    graph = b"".join([
        field(1, node("Flatten", ["face"], "flat")),
        field(1, node("MatMul", ["flat", "weights"], "vector")),
        field(2, "graph"),
        field(5, tensor("weights", weights)),
        field(11, value_info("face", shape)),
        field(12, value_info("vector", (shape[0], weights.shape[1]))),
    ])  # fmt: skip
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13))
