"""A run on disk: states from which it goes on exactly, the last few kept, and the encoder that ComfyUI loads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ...models.pivot.encoder import PivotEncoder
from ...models.pivot.file import save as export

EXPORT = "pivot_encoder.safetensors"


class Average:
    """Exponential moving average of the weights that learn, short at first: min(decay, (1 + n) / (10 + n))."""

    def __init__(self, encoder: PivotEncoder, decay: float) -> None:
        self.decay = decay
        self.live = [weight for weight in encoder.parameters() if weight.requires_grad]
        self.values = [weight.detach().clone() for weight in self.live] if decay else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        if self.decay:
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.values, [weight.detach() for weight in self.live], 1 - decay)

    @contextmanager
    def used(self) -> Iterator[None]:
        """The averaged weights in the encoder's place, for as long as the block lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for value, weight in zip(self.values, self.live, strict=False):  # no values without a decay
            kept = weight.detach().clone()
            weight.copy_(value)
            value.copy_(kept)


def states(folder: Path) -> list[Path]:
    """The states of a run's folder, oldest first."""
    return sorted((folder / "states").glob("*.pt"))


def save_state(folder: Path, step: int, state: dict, keep: int) -> None:
    """Write the state of a step as a whole or not at all, then drop all but the last `keep`."""
    path = folder / "states" / f"{step:09d}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob("*.part"):  # by a process that was killed while it wrote
        left.unlink()
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(state | {"step": step}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    for old in states(folder)[:-keep]:
        old.unlink()


def load_state(folder: Path) -> dict | None:
    """The newest state, or None in a folder without one."""
    found = states(folder)
    return torch.load(found[-1], map_location="cpu", weights_only=True) if found else None


def write_encoder(folder: Path, encoder: PivotEncoder, average: Average, step: int, made: dict[str, object]) -> Path:
    """What Pivot Encoder Loader reads, in half precision, with averaged weights where there are some."""
    path = folder / EXPORT
    with average.used():
        export(path, encoder, step, torch.float16, made)
    return path
