"""What every training of this repository is made of: draws that depend on their place alone, a budget, a learning
rate, one step down, averaged weights, and a state on disk from which a run goes on exactly."""

from __future__ import annotations

import hashlib
import math
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from .files import write_whole

# Chance


def seeded(seed: int, *place: int | str) -> torch.Generator:
    """A generator of its own for one place of a run: an epoch, a position in it, a purpose."""
    text = "/".join(map(str, (seed, *place))).encode()
    return torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little"))


# Time


@dataclass
class Budget:
    """Where a run is, and when it ends: after so many steps or so many minutes of training, whichever comes first.

    The learning rate follows the share that is spent, so a run always ends annealed. pause: ends this piece of the run
    after so many minutes (steps, where there is no limit in minutes); the state on disk carries on. spent: seconds of
    training in all pieces.
    """

    minutes: float | None = None
    steps: int | None = None
    pause: float | None = None
    step: int = 0
    spent: float = 0.0
    _last: float = field(default_factory=time.monotonic)
    _piece: tuple[int, float] = (0, 0.0)

    def start(self) -> None:
        """Begin a piece."""
        self.skip()
        self._piece = (self.step, self.spent)

    def skip(self) -> None:
        """Leave out the time since the last step: loading, saving, sheets."""
        self._last = time.monotonic()

    def lap(self) -> float:
        """Seconds since the last lap, or since what was left out."""
        now = time.monotonic()
        elapsed, self._last = now - self._last, now
        return elapsed

    def tick(self, seconds: float | None = None) -> None:
        """Count one step. seconds: what it took (default: the lap)."""
        self.spent += self.lap() if seconds is None else seconds
        self.step += 1

    @property
    def share(self) -> float:
        """What part of the budget is spent, 0..1."""
        steps = self.step / self.steps if self.steps else 0.0
        return min(1.0, max(steps, self.spent / (60 * self.minutes) if self.minutes else 0.0))

    @property
    def done(self) -> bool:
        return self.share >= 1.0

    @property
    def paused(self) -> bool:
        if self.pause is None:
            return False
        step, spent = self._piece
        return self.spent - spent >= 60 * self.pause if self.minutes else self.step - step >= self.pause

    def state_dict(self) -> dict[str, float]:
        return {"step": self.step, "spent": self.spent}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.step, self.spent = state["step"], state["spent"]


# Precision


def fast_in_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is worth it. A CPU without such products takes ten times as long in it as in float32, and more
    for convolutions."""
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


# Descent


def learning_rate(share: float, step: int, peak: float, warmup: int = 100, least: float = 0.01) -> float:
    """Linear over the first `warmup` steps, then a cosine of the spent share down to `least` of the peak; 1 keeps it
    constant."""
    cosine = least + (1 - least) * 0.5 * (1 + math.cos(math.pi * share))
    return peak * cosine * min(1.0, (step + 1) / max(warmup, 1))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """A group of parameters that has `times` learns at so many times the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("times", 1.0)


def descend(loss: torch.Tensor, optimizer: torch.optim.Optimizer, rate: float, clip: float = 1.0) -> None:
    """One optimiser step at this learning rate, the gradient's norm cut at `clip`."""
    set_rate(optimizer, rate)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], clip)
    optimizer.step()


class Average:
    """Exponential moving average of parameters, short at first: min(decay, (1 + n) / (10 + n)); none at decay 0."""

    def __init__(self, parameters: Sequence[torch.Tensor], decay: float) -> None:
        self.decay = decay
        self.live = list(parameters)
        self.values = [value.detach().clone() for value in self.live] if decay else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        if self.decay:
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.values, [value.detach() for value in self.live], 1 - decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew from the live values."""
        for value, live in zip(self.values, self.live, strict=False):
            value.copy_(live)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange live and averaged values; a second call undoes it."""
        for value, live in zip(self.values, self.live, strict=False):  # no values without a decay
            kept = live.detach().clone()
            live.copy_(value)
            value.copy_(kept)

    @contextmanager
    def used(self) -> Iterator[None]:
        """The averaged values in the live ones' place, for as long as the block lasts."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state_dict(self) -> list[torch.Tensor]:
        return self.values

    def load_state_dict(self, state: Sequence[torch.Tensor]) -> None:
        for value, saved in zip(self.values, state, strict=True):
            value.copy_(saved)


# On disk


class Part(Protocol):
    """A part of a run's state: a module, an optimizer, an Average, a Budget."""

    def state_dict(self) -> object: ...

    def load_state_dict(self, state: object) -> object: ...


def save_state(path: Path, parts: Mapping[str, Part], terms: Mapping[str, object]) -> None:
    """All of a run, atomically. terms: plain values that all pieces of a run must have in common."""
    state = {name: part.state_dict() for name, part in parts.items()}
    write_whole(path, lambda file: torch.save(state | {"terms": dict(terms)}, file))


def load_state(path: Path, parts: Mapping[str, Part], terms: Mapping[str, object], otherwise: str) -> None:
    """Put back what `save_state` wrote. ValueError, one sentence, where it is of a run with other terms or of another
    model; otherwise: what else to do, the sentence's end."""
    with _fitting(path, otherwise):
        state = torch.load(path, map_location="cpu", weights_only=True)
    for name, before in state.get("terms", {}).items():
        if before != terms.get(name, before):
            raise ValueError(
                f"The run in {path} was begun with {name} {before}, but is to go on with {terms[name]}: give what it "
                f"had, or {otherwise}."
            )
    with _fitting(path, otherwise):
        for name, part in parts.items():
            part.load_state_dict(state[name])


@contextmanager
def _fitting(path: Path, otherwise: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} does not fit the model and data of this run ({type(error).__name__}): {otherwise}."
        ) from error
