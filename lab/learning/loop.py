"""The training clock, averaged weights, and a state on disk from which a run goes on exactly."""

from __future__ import annotations

import argparse
import math
import pickle
import time
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .pictures import write_whole


@dataclass
class Budget:
    """How long to train: minutes of training time over all pieces, or (`steps`) an exact number of steps.

    The learning rate follows the share of the budget that is spent, so a run always ends annealed. `pause` ends this
    piece after so many minutes (or steps, under `steps`); the state on disk carries on.
    """

    minutes: float
    steps: int | None = None
    pause: float | None = None
    step: int = 0
    spent: float = 0.0
    """Seconds of training in all pieces."""
    _last: float = field(default_factory=time.monotonic)
    _piece: tuple[int, float] = (0, 0.0)

    def start(self) -> None:
        """Begin a piece."""
        self._last = time.monotonic()
        self._piece = (self.step, self.spent)

    def tick(self) -> None:
        """Count one step."""
        now = time.monotonic()
        self.spent += now - self._last
        self._last = now
        self.step += 1

    def skip(self) -> None:
        """Leave out the time since the last tick (saving, sheets)."""
        self._last = time.monotonic()

    @property
    def share(self) -> float:
        """What part of the budget is spent, 0..1."""
        return min(1.0, self.step / self.steps if self.steps else self.spent / (60 * self.minutes))

    @property
    def done(self) -> bool:
        return self.share >= 1.0

    @property
    def paused(self) -> bool:
        if self.pause is None:
            return False
        step, spent = self._piece
        return self.step - step >= self.pause if self.steps else self.spent - spent >= 60 * self.pause


def learning_rate(share: float, step: int, peak: float, warmup: int = 100, least: float = 0.01) -> float:
    """Linear over the first steps, then a cosine of the spent share down to `least` of the peak."""
    cosine = least + (1 - least) * 0.5 * (1 + math.cos(math.pi * share))
    return peak * cosine * min(1.0, (step + 1) / warmup)


def batch_indices(count: int, batch: int, step: int, seed: int) -> torch.Tensor:
    """Which samples step number `step` sees [batch]: a permutation an epoch, from the step alone, so that a resumed run
    sees what an uninterrupted one would."""
    place = step * batch + torch.arange(batch)
    epochs = place // count
    order = {int(e): torch.randperm(count, generator=seeded(seed, int(e))) for e in epochs.unique()}
    return torch.stack([order[int(e)][int(p) % count] for e, p in zip(epochs, place, strict=True)])


def seeded(seed: int, number: int) -> torch.Generator:
    """A generator for one step or epoch."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


class Averaged:
    """Exponential moving average of parameters, short at first: min(decay, (1 + n) / (10 + n))."""

    def __init__(self, parameters: list[torch.Tensor], decay: float):
        self.live = parameters
        self.values = [value.detach().clone() for value in parameters]
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [value.detach() for value in self.live], 1 - decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew from the live values."""
        for average, live in zip(self.values, self.live, strict=True):
            average.copy_(live)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange live and averaged values; a second call undoes it."""
        for average, live in zip(self.values, self.live, strict=True):
            kept = live.detach().clone()
            live.copy_(average)
            average.copy_(kept)


class State:
    """A run on disk, beside its result. `parts` holds what has a `state_dict`, and Averaged; `recipe` what every piece
    must have in common, so that the pieces make one run."""

    def __init__(self, out: Path, budget: Budget, parts: Mapping[str, object], recipe: Mapping[str, object]):
        self.path = out.with_suffix(".state.pt")
        self.budget, self.parts, self.recipe = budget, parts, recipe

    def save(self) -> None:
        """All of the run, atomically."""
        state = {name: p.values if isinstance(p, Averaged) else p.state_dict() for name, p in self.parts.items()}
        state["clock"] = {"step": self.budget.step, "spent": self.budget.spent}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, lambda file: torch.save(state | {"recipe": dict(self.recipe)}, file))

    def resume(self) -> bool:
        """Put back what `save` wrote; False if there is nothing. SystemExit with one sentence if it does not fit."""
        if not self.path.is_file():
            return False
        otherwise = "--restart begins anew, another --out leaves that run alone."
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            for name, value in state.get("recipe", {}).items():  # older states have none
                if self.recipe.get(name, value) != value:
                    raise SystemExit(
                        f"{self.path} was begun with {name} {value} and now it is {self.recipe[name]}: give the same "
                        f"to go on; {otherwise}"
                    )
            put_back(state, self.budget, self.parts)
            return True
        except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise SystemExit(
                f"{self.path} does not fit the model and data of this run ({type(error).__name__}), so it cannot go "
                f"on: {otherwise}"
            ) from error


def recipe(options: argparse.Namespace, pictures: Sized) -> dict[str, object]:
    """What decides which pictures and which noise a step sees."""
    return {"batch": options.batch, "seed": options.seed, "pictures": len(pictures)}


def put_back(state: Mapping, budget: Budget, parts: Mapping[str, object]) -> None:
    """A state into the same shapes."""
    budget.step, budget.spent = state["clock"]["step"], state["clock"]["spent"]
    for name, part in parts.items():
        if isinstance(part, Averaged):
            for value, saved in zip(part.values, state[name], strict=True):
                value.copy_(saved)
        else:
            part.load_state_dict(state[name])


def load_weights(path: Path, model: torch.nn.Module, average: Averaged) -> None:
    """Begin with the averaged weights of another run's state, and nothing else of it: after a change of what it
    learns from, say."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    with torch.no_grad():
        for live, saved in zip(average.live, state["average"], strict=True):
            live.copy_(saved)
    average.restart()


def write_tensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Save as safetensors in half precision, atomically."""
    import safetensors.torch

    half = {name: (value.half() if value.is_floating_point() else value) for name, value in state.items()}
    data = safetensors.torch.save({name: value.cpu().contiguous() for name, value in half.items()})
    write_whole(path, lambda file: file.write(data))


class Log:
    """Lines on the screen and in a file, and the mean of each value since the last line."""

    def __init__(self, path: Path):
        self.path = path
        self.sums: dict[str, torch.Tensor] = {}
        self.count = 0
        self.since = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, **values: torch.Tensor) -> None:
        """Collect one step's values; nothing waits for the device."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().float()
        self.count += 1

    def line(self, budget: Budget, batch: int, **more: float) -> None:
        seconds = time.monotonic() - self.since
        means = {name: float(value) / self.count for name, value in self.sums.items()}
        shown = " ".join(f"{name} {value:.5g}" for name, value in (means | more).items())
        rate = self.count * batch / seconds
        self.say(f"{100 * budget.share:5.1f}% step {budget.step} {budget.spent:.0f} s {rate:.1f}/s {shown}")
        self.sums, self.count, self.since = {}, 0, time.monotonic()

    def say(self, text: str) -> None:
        print(text, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")


def descend(loss: torch.Tensor, optimizer: torch.optim.Optimizer, rate: float) -> None:
    """One optimiser step at this learning rate, the gradient's norm cut at 1."""
    parameters = []
    for group in optimizer.param_groups:
        group["lr"] = rate
        parameters += group["params"]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def advance(
    budget: Budget,
    log: Log,
    batch: int,
    optimizer: torch.optim.Optimizer,
    average: Averaged,
    step: Callable[[], dict[str, torch.Tensor]],
    save: Callable[[], None],
    line_seconds: float,
    save_seconds: float,
) -> None:
    """Call `step`, which trains once and gives its losses, to the end of the budget or of this piece of it; a line and
    a `save` as their times come, and both at the end."""
    due_line, due_save = Every(line_seconds), Every(save_seconds)
    if budget.done:
        log.say("The budget is spent: more --minutes (or --steps) train on, --restart begins anew.")
    budget.start()
    while not (budget.done or budget.paused):
        log.add(**step())
        average.update(budget.step)
        budget.tick()
        if due_line(budget):
            log.line(budget, batch, rate=optimizer.param_groups[0]["lr"])
        if due_save(budget):
            save()
            budget.skip()
    if log.count:
        log.line(budget, batch)
    save()


class Every:
    """True once each time so many seconds of training have passed."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.next = seconds

    def __call__(self, budget: Budget) -> bool:
        if budget.spent < self.next:
            return False
        self.next = budget.spent + self.seconds
        return True


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where torch sees one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def sheet(pictures: torch.Tensor, columns: int, path: Path) -> None:
    """Save pictures [N, 3, H, W] in -1..1 as one PNG, row by row; the last row may be short."""
    from PIL import Image

    count, _, height, width = pictures.shape
    rows = math.ceil(count / columns)
    canvas = torch.zeros(3, rows * height, columns * width)
    for index, picture in enumerate(pictures.float().cpu()):
        y, x = index // columns * height, index % columns * width
        canvas[:, y : y + height, x : x + width] = picture
    array = canvas.add(1).mul(127.5).clamp(0, 255).round().byte().permute(1, 2, 0).numpy()
    write_whole(path, lambda file: Image.fromarray(array).save(file, "PNG"))


def add_arguments(parser: argparse.ArgumentParser, minutes: float, batch: int, rate: float) -> None:
    """What every training takes, with its own defaults."""
    parser.add_argument("--data", type=Path, required=True, help="folder with train-*.tar")
    parser.add_argument("--out", type=Path, required=True, help="the result, safetensors; state, log, sheets beside it")
    parser.add_argument("--minutes", type=float, default=minutes, help="training time in all (default %(default)s)")
    parser.add_argument("--steps", type=int, help="train so many steps instead, whatever time they take")
    parser.add_argument("--pause", type=float, help="stop after so many minutes (steps, with --steps)")
    parser.add_argument("--restart", action="store_true", help="begin anew, not from the state beside --out")
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)  # said what is now the rule
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rate", type=float, default=rate, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
