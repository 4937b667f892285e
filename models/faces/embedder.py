"""Who is it: the distance of two faces in a 128-d embedding that nothing in training has seen.

The network is dlib's 29-layer ResNet, as the npm package @vladmandic/face-api carries it (lab/make/embedder.py).
Faces of one person lie near each other in Euclidean distance; docs/results/measures.md gives the measured distances.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .detector import arrange, find_upright
from .geometry import similarity
from .mtcnn import BuiltInDetector

WEIGHTS = Path(__file__).parent / "weights" / "face_embedder.safetensors"
CHIP = 150
MEAN = (122.782, 117.001, 104.298)
"""What dlib takes off the red, green and blue of 0..255 before it divides by 256."""

TEMPLATE = (
    (0.225492, 0.215990),
    (0.754764, 0.215990),
    (0.490127, 0.515625),
    (0.254149, 0.780233),
    (0.726104, 0.780233),
)
"""Eye centres, nose tip, mouth corners in the unit box of dlib's mean face.

dlib aligns by the corners of the eyes and the base of the nose. These are the places, in that same mean face of 68
points, of the five that MTCNN finds: the means of the six points around each eye, the tip, the corners of the mouth.
"""
PADDING = 0.25
"""Room that dlib leaves around the unit box, in its sides."""
MAX_OVERSAMPLING = 8

STAGES = ((32, 3, False), (64, 3, True), (128, 2, True), (256, 2, True))
"""Width, plain blocks, and whether a halving block comes first. A last halving block of width 256 follows."""


def template() -> torch.Tensor:
    """Where the five landmarks of an aligned face lie in a chip: [5, 2] in dlib's pixels, whose first centre is 0."""
    return (torch.tensor(TEMPLATE) + PADDING) / (1 + 2 * PADDING) * CHIP


def align(pictures: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
    """Face chips [B, 3, 150, 150], framed as by dlib's get_face_chip with padding 0.25; differentiable.

    pictures: [B, 3, H, W] in 0..1. landmarks: [B, 5, 2] in pixels (the first one's centre is 0.5), as TEMPLATE lists
    them. Black outside the picture. The fit goes from the chip to the picture, as dlib's does: errors are weighed in
    the picture. Large faces are sampled several times a pixel and averaged, or they would alias.
    """
    return chips(pictures, landmarks, template(), CHIP)


def chips(pictures: torch.Tensor, landmarks: torch.Tensor, goal: torch.Tensor, side: int) -> torch.Tensor:
    """`align` to other places: landmarks come to lie at `goal` [5, 2] in chips [B, 3, side, side]; differentiable."""
    from kornia.geometry.transform import warp_affine

    goal = goal.to(landmarks).expand_as(landmarks)
    to_picture = F.pad(similarity(goal, landmarks - 0.5), (0, 0, 0, 1))
    to_picture[:, 2, 2] = 1
    step = to_picture[:, :2, 0].norm(dim=1).max().item()  # pixels of the picture for one of the chip
    fine = min(max(1, round(step)), MAX_OVERSAMPLING)
    to_fine = torch.diag(torch.tensor([fine, fine, 1.0])).to(to_picture)
    to_fine[:2, 2] = (fine - 1) / 2
    transform = (to_fine @ torch.linalg.inv(to_picture))[:, :2]
    enlarged = warp_affine(pictures, transform.to(pictures), (side * fine, side * fine), align_corners=True)
    return F.avg_pool2d(enlarged, fine)


def find_landmarks(picture: torch.Tensor) -> torch.Tensor | None:
    """Five landmarks [5, 2] of the largest face in a picture [3, H, W] in 0..1, or None where no face is found."""
    faces = find_upright(BuiltInDetector(), picture)
    if not faces:
        return None
    return torch.tensor(arrange(faces, "largest", *picture.shape[-2:])[0].landmarks)


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; a halving block strides in the first one and averages the shortcut.

    dlib's sum completes with zeros whichever side is smaller, in channels (the shortcut) and in rows and columns (the
    convolutions, whose unpadded stride loses one where the input's side is even). Broadcasting would hide the latter.
    """

    def __init__(self, inputs: int, width: int, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        self.first = nn.Conv2d(inputs, width, 3, stride=2 if halve else 1, padding=0 if halve else 1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(x).relu())
        if self.halve:
            x = F.avg_pool2d(x, 2)
            x = F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
            y = F.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]))
        return (x + y).relu()


class FaceEmbedder(nn.Module):
    """Chips [B, 3, 150, 150] in 0..1 to embeddings [B, 128], not normalised, as in dlib. Frozen; differentiable."""

    def __init__(self, file: str | Path = WEIGHTS) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, stride=2)
        blocks, inputs = [], 32
        for width, plain, halve in STAGES:
            if halve:
                blocks.append(_Block(inputs, width, True))
            blocks += [_Block(width, width, False) for _ in range(plain)]
            inputs = width
        self.blocks = nn.Sequential(*blocks, _Block(inputs, inputs, True))
        self.head = nn.Linear(inputs, 128, bias=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.load_state_dict(read_weights(file))
        self.requires_grad_(False).eval()

    def forward(self, chips: torch.Tensor) -> torch.Tensor:
        x = (chips * 255 - self.mean) / 256
        x = self.blocks(F.max_pool2d(self.stem(x).relu(), 3, 2))
        return self.head(x.mean((2, 3)))

    def embed(self, pictures: torch.Tensor, landmarks: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, 128] of the faces at `landmarks` [B, 5, 2] in `pictures` [B, 3, H, W] in 0..1."""
        return self(align(pictures, landmarks))


def read_weights(file: str | Path) -> dict[str, torch.Tensor]:
    """The file's tensors, out of their 8 bits and with each layer's scale and shift folded into its convolution."""
    from safetensors.torch import load_file

    stored = load_file(str(file))
    ranges = {name.removesuffix(".range"): stored.pop(name) for name in list(stored) if name.endswith(".range")}
    plain = {
        name: value.float() * ranges[name][0] + ranges[name][1] if name in ranges else value
        for name, value in stored.items()
    }
    weights = {"head.weight": plain.pop("head.weight")}
    for layer in sorted({name.rsplit(".", 1)[0] for name in plain}):
        scale = plain[f"{layer}.scale"]
        weights[f"{layer}.weight"] = plain[f"{layer}.kernel"] * scale.view(-1, 1, 1, 1)
        weights[f"{layer}.bias"] = plain[f"{layer}.bias"] * scale + plain[f"{layer}.shift"]
    return weights
