"""The built-in face detector: MTCNN in plain torch, 2 MB of weights, no download.

Written from the paper (Zhang, Zhang, Li, Qiao: Joint Face Detection and Alignment using Multi-task Cascaded
Convolutional Networks, 2016). Three small networks in a row: P-Net proposes on an image pyramid, R-Net refines, O-Net
decides and gives five landmarks. Functional, with the weights in a dictionary: no module is built, so the global random
generator stays untouched.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F

from .crop import take
from .face import DetectedFace

WEIGHTS = Path(__file__).parent / "weights" / "mtcnn.safetensors"

MIN_FACE = 20.0
PYRAMID_STEP = 0.709
CELL, STRIDE = 12, 2
THRESHOLDS = (0.6, 0.7, 0.8)
CANDIDATES = (1500, 500)
"""At most so many proposals enter R-Net and O-Net: texture such as foliage or gravel makes thousands."""

LOOKS = (
    (1.0, 0.0, 0.0), (0.85, 0.0, 0.0), (1.2, 0.0, 0.0), (1.4, 0.0, 0.0),
    (1.1, 0.08, 0.0), (1.1, -0.08, 0.0), (1.1, 0.0, 0.08), (1.1, 0.0, -0.08),
)  # fmt: skip
"""Frames of the second look: side, shift to the right and shift down, in sides of the squared box."""
SURE = 0.65
"""Mean probability over the second look's frames from which a find is certain.

Measured on 215 upright finds in some 300 pictures (photographs, drawings, groups with faces of 16 pixels): of 198 faces
one lies below, of 17 other finds one above. By O-Net's own score at 0.95 the two errors are 12.
"""

Weights = dict[str, torch.Tensor]


@lru_cache(maxsize=1)
def load_weights() -> Weights:
    """The three networks' tensors, `<net>.<layer>.{weight,bias,slope}`.

    R-Net and O-Net run on small patches, where the CPU takes a third of the time with channels last.
    """
    from safetensors.torch import load_file

    weights = load_file(str(WEIGHTS))
    patches = {name for name, value in weights.items() if value.ndim == 4 and not name.startswith("pnet.")}
    return weights | {name: weights[name].contiguous(memory_format=torch.channels_last) for name in patches}


class BuiltInDetector:
    """FaceDetector by MTCNN.

    least, below: sides of the faces to look for, pixels. The cost grows as the inverse square of `least`; the smallest
    faces alone cost no second look at the larger ones.
    """

    name = "built-in"

    def __init__(self, least: float = MIN_FACE, below: float = math.inf) -> None:
        self.least, self.below = least, below

    @torch.no_grad()
    def detect(self, picture: torch.Tensor) -> list[DetectedFace]:
        """Faces in a picture [3, H, W] in 0..1, most confident first, in its pixels."""
        weights = load_weights()
        picture = picture.mul(255).sub_(127.5).div_(128)  # the range the networks were trained on
        boxes = propose(weights, picture, self.least, self.below)
        if not len(boxes):
            return []
        score, shift, _ = _judge(weights, "rnet", _patches(picture, boxes, 24))
        boxes, score, shift = _best(boxes, score, shift, threshold=THRESHOLDS[1], overlap=0.7, limit=CANDIDATES[1])
        boxes = squared(moved(boxes, shift))
        if not len(boxes):
            return []
        score, shift, points = _judge(weights, "onet", _patches(picture, boxes, 48))
        points = boxes[:, None, :2] + points * (boxes[:, 2:] - boxes[:, :2])[:, None]
        boxes, score, shift, points = _best(boxes, score, shift, points, threshold=THRESHOLDS[2], overlap=0.7)
        boxes = moved(boxes, shift)
        keep = without_nested(boxes, score, 0.7)
        trust = second_look(weights, picture, boxes[keep]).tolist()
        return [
            DetectedFace(tuple(box), tuple(map(tuple, five)), first, second, second >= SURE)
            for box, five, first, second in zip(
                boxes[keep].tolist(), points[keep].tolist(), score[keep].tolist(), trust, strict=True
            )
        ]


def pyramid(height: int, width: int, least: float = MIN_FACE, below: float = math.inf) -> list[float]:
    """Scales at which a face of `least` pixels, and every larger one `below` the other, fits P-Net's cell of 12."""
    scales, scale = [], CELL / least
    while min(height, width) * scale >= CELL and scale > CELL / below:
        scales.append(scale)
        scale *= PYRAMID_STEP
    return scales


def propose(weights: Weights, picture: torch.Tensor, least: float = MIN_FACE, below: float = math.inf) -> torch.Tensor:
    """P-Net over the pyramid: square candidate boxes [N, 4]."""
    found, scores = [], []
    height, width = picture.shape[-2:]
    for scale in pyramid(height, width, least, below):
        size = (round(height * scale), round(width * scale))
        score, shift = p_net(weights, F.interpolate(picture[None], size, mode="area"))
        rows, columns = torch.nonzero(score >= THRESHOLDS[0], as_tuple=True)
        corner = torch.stack([columns, rows], 1) * STRIDE
        boxes = torch.cat([corner, corner + CELL], 1) / torch.tensor([size[1] / width, size[0] / height] * 2)
        boxes, score, shift = _best(boxes, score[rows, columns], shift[:, rows, columns].T, overlap=0.5)
        found.append(moved(boxes, shift))
        scores.append(score)
    if not found:
        return picture.new_zeros(0, 4)
    boxes, _ = _best(torch.cat(found), torch.cat(scores), overlap=0.7)
    return squared(boxes)


def p_net(weights: Weights, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Face probability [h, w] and box shift [4, h, w] for every cell of a picture [1, 3, H, W]."""
    x = F.max_pool2d(_conv(weights, "pnet.conv1", picture), 2, 2, ceil_mode=True)
    x = _conv(weights, "pnet.conv3", _conv(weights, "pnet.conv2", x))
    face = F.conv2d(x, weights["pnet.face.weight"], weights["pnet.face.bias"]).softmax(1)[0, 1]
    return face, F.conv2d(x, weights["pnet.box.weight"], weights["pnet.box.bias"])[0]


def _judge(weights: Weights, net: str, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Face probability [N], box shift [N, 4] and, of "onet", points [N, 5, 2]; patches of 24 px for "rnet", 48 px."""
    x = F.max_pool2d(_conv(weights, f"{net}.conv1", patches), 3, 2, ceil_mode=True)
    x = F.max_pool2d(_conv(weights, f"{net}.conv2", x), 3, 2, ceil_mode=True)
    x = _conv(weights, f"{net}.conv3", x)
    if net == "onet":
        x = _conv(weights, "onet.conv4", F.max_pool2d(x, 2, 2, ceil_mode=True))
    x = F.prelu(_dense(weights, f"{net}.dense", x.flatten(1)), weights[f"{net}.dense.slope"])
    points = None
    if net == "onet":  # five x, then five y
        points = _dense(weights, "onet.points", x).unflatten(1, (2, 5)).transpose(1, 2)
    return _dense(weights, f"{net}.face", x).softmax(1)[:, 1], _dense(weights, f"{net}.box", x), points


def second_look(weights: Weights, picture: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """O-Net's mean face probability [N] for boxes [N, 4] over LOOKS and their mirror images.

    A face remains one wherever its frame lies; a wheel, a shoulder or a head that hangs upside down is one in a single
    frame, by chance: O-Net's own score does not tell (0.99 for a round logo, 0.85 for a blurred bystander).
    """
    if not len(boxes):
        return boxes.new_zeros(0)
    square = squared(boxes)
    centre, side = (square[:, :2] + square[:, 2:]) / 2, (square[:, 2:] - square[:, :2])[:, :1]
    looks = []
    for zoom, *shift in LOOKS:
        middle = centre + torch.tensor(shift) * side
        looks.append(torch.cat([middle - zoom * side / 2, middle + zoom * side / 2], 1))
    patches = _patches(picture, torch.cat(looks), 48)
    seen = (_judge(weights, "onet", each)[0] for each in (patches, patches.flip(-1)))
    return torch.stack(list(seen)).view(2 * len(LOOKS), -1).mean(0)


def _conv(weights: Weights, layer: str, x: torch.Tensor) -> torch.Tensor:
    x = F.conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"])
    return F.prelu(x, weights[f"{layer}.slope"])


def _dense(weights: Weights, layer: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"])


def _patches(picture: torch.Tensor, boxes: torch.Tensor, side: int) -> torch.Tensor:
    """[N, 3, side, side] cut from the picture and averaged down; outside of it, its border pixels repeat."""
    reach = max(picture.shape[-2:])
    whole = boxes.clamp(-reach, 2 * reach).round().int()
    whole[:, 2:] = torch.maximum(whole[:, 2:], whole[:, :2] + 1)
    patches = (take(picture, tuple(box))[None] for box in whole.tolist())
    small = torch.cat([F.interpolate(patch, (side, side), mode="area") for patch in patches])
    return small.contiguous(memory_format=torch.channels_last)


def moved(boxes: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Each side of each box moved by the network's regression, given in fractions of the box."""
    size = boxes[:, 2:] - boxes[:, :2]
    return boxes + shift * size.repeat(1, 2)


def squared(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes [N, 4] grown to squares around their centres."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat([centre - half, centre + half], 1)


def _best(
    boxes: torch.Tensor,
    score: torch.Tensor,
    *rest: torch.Tensor,
    threshold: float = 0.0,
    overlap: float,
    limit: int = CANDIDATES[0],
) -> tuple[torch.Tensor, ...]:
    """Non-maximum suppression: at most `limit` boxes above the threshold, best first, and what belongs to them."""
    from torchvision.ops import nms

    sure = torch.nonzero(score > threshold).flatten()
    keep = sure[nms(boxes[sure], score[sure], overlap)][:limit]
    return tuple(values[keep] for values in (boxes, score, *rest))


def without_nested(boxes: torch.Tensor, score: torch.Tensor, overlap: float) -> list[int]:
    """Indices of boxes, best first, without those that share more than `overlap` of the smaller area with a better."""
    keep: list[int] = []
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    for index in score.argsort(descending=True).tolist():
        common = torch.minimum(boxes[keep, 2:], boxes[index, 2:]) - torch.maximum(boxes[keep, :2], boxes[index, :2])
        shared = common.clamp(min=0).prod(1) / torch.minimum(area[keep], area[index]).clamp(min=1e-6)
        if not bool((shared > overlap).any()):
            keep.append(index)
    return keep
