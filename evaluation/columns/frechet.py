"""FID and KID of all portraits of a method against a folder of real pictures, on torch-fidelity's Inception.

FID is biased by the number of pictures and has no interval here: resampling would double pictures and inflate it.
Compare methods of one run only. KID is not, and has one (kernel.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..protocol import PICTURES
from .column import NoFile, Shown, only_file
from .kernel import kernel_distance

SIDE = 299
LAYER = "2048"
BATCH = 16


class Frechet:
    """real: the folder of pictures to compare with. Pictures are reduced by Pillow, as clean-fid does, since others
    alias."""

    def __init__(self, weights: Path, real: Path | None) -> None:
        what = "torch-fidelity's weights-inception-2015-12-05-6726825d.pth (Apache-2.0)"
        file = only_file(weights, "inception", (".pth", ".safetensors"), what)
        if real is None:
            raise NoFile("no pictures to compare with: give --real FOLDER, 10,000 portraits of FFHQ for example.")
        self.real = sorted(path for path in real.rglob("*") if path.suffix.lower() in PICTURES)
        if len(self.real) < 2:
            raise NoFile(f"{real} holds {len(self.real)} pictures; FID needs two at least, and thousands to mean much.")
        self.key = f"frechet-2-{file.name}-{file.stat().st_size}-{real.name}-{len(self.real)}"
        self.shown = (Shown("fid", "FID", -1), Shown("kid", "KID × 1000", -1, 1000, 2))
        self.network = inception(file)

    @torch.no_grad()
    def features(self, files: Sequence[Path]) -> torch.Tensor:
        """[N, 2048] in double precision."""
        parts = []
        for at in range(0, len(files), BATCH):
            pictures = torch.stack([pixels(file) for file in files[at : at + BATCH]])
            (found,) = self.network(pictures)
            parts.append(found.double())
        return torch.cat(parts)

    @cached_property
    def known(self) -> torch.Tensor:
        return self.features(self.real)

    def __call__(self, files: Sequence[Path], people: Sequence[str]) -> dict[str, float | None]:
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

        if len(files) < 2:
            return {"fid": None, "kid": None}
        mine = self.features(files)
        statistics = [fid_features_to_statistics(each) for each in (mine, self.known)]
        fid = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
        kid = kernel_distance(mine.numpy(), people, self.known.numpy())
        known = kid.people > 1
        return {
            "fid": fid,
            "kid": kid.mean,
            "kid low": kid.low if known else None,
            "kid high": kid.high if known else None,
        }


def inception(file: Path) -> torch.nn.Module:
    """torch-fidelity's network. It would unpickle whatever the file holds; so the tensors are read here, and it gets a
    pickle of ours."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(str(file))
    else:
        state = torch.load(file, map_location="cpu", weights_only=True)
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        safe = Path(folder, "weights.pth")
        torch.save(state, safe)
        return FeatureExtractorInceptionV3("inception", [LAYER], feature_extractor_weights_path=str(safe))


def pixels(file: Path) -> torch.Tensor:
    """uint8 [3, 299, 299]."""
    with Image.open(file) as picture:
        small = picture.convert("RGB").resize((SIDE, SIDE), Image.BICUBIC)
    return torch.from_numpy(np.array(small)).movedim(-1, 0)
