"""facexlib's RetinaFace and face parsing, when the user has their files; nothing is downloaded.

facexlib's own `init_*_model` functions download and unpickle freely, so only its network classes are used here, and
their state is read with `weights_only=True`.
"""

from __future__ import annotations

import importlib
import logging
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from .face import DetectedFace

DETECTION_FILES = {"detection_Resnet50_Final.pth": "resnet50", "detection_mobilenet0.25_Final.pth": "mobile0.25"}
PARSING_FILES = {"parsing_bisenet.pth": "bisenet", "parsing_parsenet.pth": "parsenet"}
SOURCE_PAGE = "the releases page of xinntao/facexlib on GitHub"

MIN_SCORE, OVERLAP = 0.8, 0.4
SURE = 0.9
"""Score from which a find is certain."""
MAX_FACES = 100
PARSING_SIDE = 512
FACE_LABELS = {"bisenet": (1, 2, 3, 4, 5, 6, 10, 11, 12, 13), "parsenet": (1, 2, 3, 4, 5, 6, 7, 10, 11, 12)}
"""Skin, brows, eyes, glasses, nose, mouth and lips among the 19 labels of each network; not ears, hair, neck."""
NORMALISATION = {
    "bisenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "parsenet": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}

log = logging.getLogger(__name__)


class RetinaFaceDetector:
    """FaceDetector by facexlib's RetinaFace."""

    name = "facexlib"

    def __init__(self, network: torch.nn.Module) -> None:
        self._network = network
        self._lock = threading.Lock()  # the network keeps each picture's size on itself

    @torch.no_grad()
    def detect(self, picture: torch.Tensor) -> list[DetectedFace]:
        pixels = (picture.flip(0) * 255).permute(1, 2, 0).numpy()  # the network was trained on BGR, 0 to 255
        with self._lock:
            found = self._network.detect_faces(pixels, MIN_SCORE, OVERLAP)
        rows = torch.from_numpy(found).double()
        rows = rows[rows.isfinite().all(1) & (rows[:, 2] - rows[:, 0] >= 1) & (rows[:, 3] - rows[:, 1] >= 1)]
        return [
            DetectedFace(tuple(row[:4]), tuple(zip(row[5::2], row[6::2], strict=True)), row[4], row[4], row[4] >= SURE)
            for row in rows[:MAX_FACES].tolist()
        ]


class ParsingNetwork:
    """FaceParser by facexlib's BiSeNet or ParseNet."""

    name = "facexlib parsing"

    def __init__(self, network: torch.nn.Module, kind: str) -> None:
        self._network, self._kind = network, kind

    @torch.no_grad()
    def parse(self, crop: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(values)[:, None, None] for values in NORMALISATION[self._kind])
        seen = F.interpolate(crop[None], (PARSING_SIDE, PARSING_SIDE), mode="bilinear", antialias=True)
        labels = self._network((seen - mean) / std)[0].argmax(1)
        mask = torch.isin(labels, torch.tensor(FACE_LABELS[self._kind])).float()
        return F.interpolate(mask[None], crop.shape[-2:], mode="bilinear", antialias=True)[0, 0].clamp(0, 1)


def load_detector(folders: Sequence[Path], required: bool = False) -> RetinaFaceDetector | None:
    """RetinaFace from the first known file found in `folders`; without one None, or ValueError where `required`."""
    path = _find(DETECTION_FILES, folders)
    if path is None:
        if required:
            raise ValueError(
                f"facexlib's face detector is not installed: put {' or '.join(DETECTION_FILES)} (from "
                f'{SOURCE_PAGE}) into {_places(folders)}, or set detector to "auto" or "built-in".'
            )
        return None
    network = _load(
        path,
        "facexlib.detection.retinaface",
        required,
        lambda module: module.RetinaFace(network_name=DETECTION_FILES[path.name], device=torch.device("cpu")),
    )
    return None if network is None else RetinaFaceDetector(network)


def load_parser(folders: Sequence[Path]) -> ParsingNetwork | None:
    """BiSeNet or ParseNet from the first known file found in `folders`, or None."""
    path = _find(PARSING_FILES, folders)
    if path is None:
        return None
    kind = PARSING_FILES[path.name]
    builders = {
        "bisenet": lambda module: module.BiSeNet(num_class=19),
        "parsenet": lambda module: module.ParseNet(in_size=PARSING_SIDE, out_size=PARSING_SIDE, parsing_ch=19),
    }
    network = _load(path, f"facexlib.parsing.{kind}", False, builders[kind])
    return None if network is None else ParsingNetwork(network, kind)


def _find(names: dict[str, str], folders: Sequence[Path]) -> Path | None:
    return next((folder / name for name in names for folder in folders if (folder / name).is_file()), None)


def _places(folders: Sequence[Path]) -> str:
    return " or ".join(str(folder) for folder in folders) or "models/facexlib"


def _load(path: Path, module_name: str, required: bool, build: Callable) -> torch.nn.Module | None:
    """Network with the file's state on the CPU; None when facexlib itself cannot be imported and is not required."""
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a broken OpenCV or numba raises far more than ImportError
        sentence = (
            f'{path.name} is there, but the Python package facexlib cannot be imported ({error}): run "pip '
            "install facexlib\" in ComfyUI's environment"
        )
        if required:
            raise ValueError(f'{sentence}, or set detector to "built-in".') from error
        log.warning("Face Reference: %s; the built-in way is used.", sentence)
        return None
    # Building a network draws random initial weights: the global generator is put back as it was.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = build(module)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as facexlib's {path.stem}; delete it and fetch it again from {SOURCE_PAGE}."
        ) from error
    return network.eval().requires_grad_(False)
