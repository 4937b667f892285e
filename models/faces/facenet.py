"""FaceNet's network, Inception-ResNet v1, under the names of facenet-pytorch's published weights (VGGFace2, CASIA).

Schroff, Kalenichenko, Philbin: FaceNet (2015); Szegedy et al.: Inception-v4, Inception-ResNet (2016). The OmniPortrait
paper's SIM is the cosine of its embeddings.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

SIDE = 160
"""Pixels of the face that it was trained on."""


class Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, size: int | tuple[int, int], stride: int = 1, pad: bool = False):
        super().__init__()
        padding = (size // 2 if isinstance(size, int) else tuple(each // 2 for each in size)) if pad else 0
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x)).relu()


class Residual(nn.Module):
    """Branches side by side, brought back to the input's width and added to it, `scale` times."""

    def __init__(self, width: int, branches: list[nn.Module], joined: int, scale: float, last: bool = False) -> None:
        super().__init__()
        self.count, self.scale, self.last = len(branches), scale, last
        for number, branch in enumerate(branches):
            setattr(self, f"branch{number}", branch)
        self.conv2d = nn.Conv2d(joined, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        together = torch.cat([getattr(self, f"branch{number}")(x) for number in range(self.count)], 1)
        y = x + self.scale * self.conv2d(together)
        return y if self.last else y.relu()


class Reduction(nn.Module):
    """Branches side by side at half the resolution, and the input's own maxima."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.count = len(branches)
        for number, branch in enumerate(branches):
            setattr(self, f"branch{number}", branch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [getattr(self, f"branch{number}")(x) for number in range(self.count)]
        return torch.cat([*parts, F.max_pool2d(x, 3, 2)], 1)


def block35() -> Residual:
    second = nn.Sequential(Conv(256, 32, 1), Conv(32, 32, 3, pad=True))
    third = nn.Sequential(Conv(256, 32, 1), Conv(32, 32, 3, pad=True), Conv(32, 32, 3, pad=True))
    return Residual(256, [Conv(256, 32, 1), second, third], 96, 0.17)


def block17() -> Residual:
    second = nn.Sequential(Conv(896, 128, 1), Conv(128, 128, (1, 7), pad=True), Conv(128, 128, (7, 1), pad=True))
    return Residual(896, [Conv(896, 128, 1), second], 256, 0.1)


def block8(scale: float, last: bool = False) -> Residual:
    second = nn.Sequential(Conv(1792, 192, 1), Conv(192, 192, (1, 3), pad=True), Conv(192, 192, (3, 1), pad=True))
    return Residual(1792, [Conv(1792, 192, 1), second], 384, scale, last)


def mixed_6a() -> Reduction:
    second = nn.Sequential(Conv(256, 192, 1), Conv(192, 192, 3, pad=True), Conv(192, 256, 3, 2))
    return Reduction([Conv(256, 384, 3, 2), second])


def mixed_7a() -> Reduction:
    third = nn.Sequential(Conv(896, 256, 1), Conv(256, 256, 3, pad=True), Conv(256, 256, 3, 2))
    return Reduction([*(nn.Sequential(Conv(896, 256, 1), Conv(256, width, 3, 2)) for width in (384, 256)), third])


class FaceNet(nn.Module):
    """Faces [B, 3, 160, 160] in 0..1 to unit embeddings [B, 512]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d_1a = Conv(3, 32, 3, 2)
        self.conv2d_2a = Conv(32, 32, 3)
        self.conv2d_2b = Conv(32, 64, 3, pad=True)
        self.conv2d_3b = Conv(64, 80, 1)
        self.conv2d_4a = Conv(80, 192, 3)
        self.conv2d_4b = Conv(192, 256, 3, 2)
        self.repeat_1 = nn.Sequential(*(block35() for _ in range(5)))
        self.mixed_6a = mixed_6a()
        self.repeat_2 = nn.Sequential(*(block17() for _ in range(10)))
        self.mixed_7a = mixed_7a()
        self.repeat_3 = nn.Sequential(*(block8(0.2) for _ in range(5)))
        self.block8 = block8(1.0, last=True)
        self.last_linear = nn.Linear(1792, 512, bias=False)
        self.last_bn = nn.BatchNorm1d(512, eps=0.001)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        x = (faces * 255 - 127.5) / 128  # the range that it was trained on
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        x = self.conv2d_3b(F.max_pool2d(x, 3, 2))
        x = self.repeat_1(self.conv2d_4b(self.conv2d_4a(x)))
        x = self.repeat_2(self.mixed_6a(x))
        x = self.block8(self.repeat_3(self.mixed_7a(x)))
        return F.normalize(self.last_bn(self.last_linear(x.mean((2, 3)))), dim=1)
