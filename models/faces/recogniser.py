"""Networks that tell faces apart, behind one interface: the built-in one, FaceNet and ArcFace-like ones by file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

import torch

from .crop import resize, take
from .embedder import FaceEmbedder, chips
from .face import DetectedFace
from .facenet import SIDE, FaceNet

BUILT_IN = "built-in"
ARCFACE_SIDE = 112
ARCFACE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
"""Where ArcFace and its kin want eyes, nose and mouth corners in 112 pixels, the first one's centre being 0."""


@dataclass(frozen=True)
class Measure:
    """How two embeddings are compared. threshold: from where, or as far as, two faces count as one person."""

    kind: Literal["distance", "cosine"]
    threshold: float

    @property
    def worst(self) -> float:
        """The value of a picture without a face."""
        return float("inf") if self.kind == "distance" else -1.0

    def value(self, a: torch.Tensor, b: torch.Tensor) -> float:
        """Of two embeddings [D]: their Euclidean distance, or their cosine."""
        if self.kind == "distance":
            return float((a - b).norm())
        return float(torch.cosine_similarity(a, b, dim=0))

    def order(self, value: float) -> float:
        """Sorts values, the nearest first."""
        return value if self.kind == "distance" else -value

    def same(self, value: float) -> bool:
        return self.order(value) <= self.order(self.threshold)


class Recogniser(Protocol):
    """An embedding of faces. key: equal for equal results."""

    name: str
    key: str
    measure: Measure

    def embed(self, picture: torch.Tensor, face: DetectedFace) -> torch.Tensor:
        """[D] of a face in the pixels of a picture [3, H, W] in 0..1."""
        ...


class BuiltIn:
    """dlib's ResNet (embedder.py). 0.6 is the cut that dlib gives for it, on photographs."""

    name, key, measure = BUILT_IN, BUILT_IN, Measure("distance", 0.6)

    def __init__(self) -> None:
        self._network = FaceEmbedder()

    @torch.no_grad()
    def embed(self, picture: torch.Tensor, face: DetectedFace) -> torch.Tensor:
        return self._network.embed(picture[None], torch.tensor([face.landmarks]))[0]


class FaceNetFile:
    """facenet-pytorch's weights as safetensors. FaceNet's cut on LFW is a squared distance of 1.242: a cosine of
    1 - 1.242 / 2."""

    measure = Measure("cosine", 0.379)

    def __init__(self, path: Path) -> None:
        self.name, self.key = path.name, file_key(path)
        self._network = load_facenet(path)

    @torch.no_grad()
    def embed(self, picture: torch.Tensor, face: DetectedFace) -> torch.Tensor:
        x0, y0, x1, y1 = (round(side) for side in face.box)
        cut = take(picture, (x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
        return self._network(resize(cut, SIDE, SIDE)[None])[0]


class ArcFaceFile:
    """An ONNX file that takes aligned faces [1, 3, 112, 112] in -1..1, as AuraFace and ArcFace do.

    0.28 is a customary cut for networks trained so. It was not calibrated here.
    """

    measure = Measure("cosine", 0.28)

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ValueError(
                f'{path.name} needs the package onnxruntime: install it into the Python of ComfyUI, or choose "'
                f'{BUILT_IN}", which needs nothing.'
            ) from None
        self.name, self.key = path.name, file_key(path)
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes of its own, without a common base
            raise ValueError(f"{path.name} cannot be read as ONNX ({error}); download it anew.") from None
        taken = [(entry.name, entry.shape) for entry in self._session.get_inputs()]
        if len(taken) != 1 or list(taken[0][1][1:]) != [3, ARCFACE_SIDE, ARCFACE_SIDE]:
            raise ValueError(
                f"{path.name} takes {', '.join(f'{name} {shape}' for name, shape in taken)}, but a face embedder takes "
                f"faces [1, 3, 112, 112]: choose a recognition model such as AuraFace's glintr100.onnx."
            )
        self._input = taken[0][0]

    def embed(self, picture: torch.Tensor, face: DetectedFace) -> torch.Tensor:
        with torch.no_grad():
            chip = chips(picture[None], torch.tensor([face.landmarks]), torch.tensor(ARCFACE), ARCFACE_SIDE)
        (vector,) = self._session.run(None, {self._input: (chip * 2 - 1).numpy()})
        return torch.from_numpy(vector[0])


def load_recogniser(path: Path | None) -> Recogniser:
    """Of a file, or the built-in one; kept for the next call. ValueError, one sentence, for a file that is none."""
    return _loaded(path, None if path is None else path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _loaded(path: Path | None, changed: int | None) -> Recogniser:
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):  # modules draw their first weights
        if path is None:
            return BuiltIn()
        return ArcFaceFile(path) if path.suffix == ".onnx" else FaceNetFile(path)


def file_key(path: Path) -> str:
    """Of a file's name, size and time: enough to notice another one."""
    return f"{path.name}-{path.stat().st_size}-{path.stat().st_mtime_ns}"


def load_facenet(path: Path) -> FaceNet:
    """The network with the file's weights; the classifier behind it is left out. ValueError names what is wrong."""
    from safetensors.torch import load_file

    try:
        state = load_file(str(path))
    except Exception as error:  # safetensors raises a class of its own
        raise ValueError(f"{path.name} cannot be read as safetensors ({error}); download it anew.") from None
    network = FaceNet().eval().requires_grad_(False)
    known = network.state_dict()
    state = {name: value for name, value in state.items() if not name.startswith("logits.")}
    wrong = {name for name, value in state.items() if name not in known or value.shape != known[name].shape}
    wrong |= {name for name in set(known) - set(state) if not name.endswith("num_batches_tracked")}
    if wrong:
        raise ValueError(
            f"{path.name} is not FaceNet as facenet-pytorch saves it (the first difference is {min(wrong)}): choose "
            "those weights as safetensors, or an ONNX file."
        )
    network.load_state_dict(state, strict=False)
    return network
