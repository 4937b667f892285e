"""What the laboratory's trainings share beside training/loop.py: their command line, log, steps and sheets."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sized
from pathlib import Path

import torch

from ...training.files import write_whole
from ...training.loop import Average, Budget, Part, fast_in_bf16, load_state, save_state, seeded


def mixed(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where that is faster."""
    return torch.autocast(device.type, torch.bfloat16, enabled=fast_in_bf16(device))


def batch_indices(count: int, batch: int, step: int, seed: int) -> torch.Tensor:
    """Which samples step number `step` sees [batch]: a permutation an epoch, from the step alone, so that a resumed run
    sees what an uninterrupted one would."""
    place = step * batch + torch.arange(batch)
    epochs = place // count
    order = {int(e): torch.randperm(count, generator=seeded(seed, int(e))) for e in epochs.unique()}
    return torch.stack([order[int(e)][int(p) % count] for e, p in zip(epochs, place, strict=True)])


class State:
    """A run on disk, beside its result. `parts` holds what has a `state_dict`; `recipe` what every piece must have in
    common, so that the pieces make one run."""

    def __init__(self, out: Path, budget: Budget, parts: Mapping[str, Part], recipe: Mapping[str, object]):
        self.path = out.with_suffix(".state.pt")
        self.parts, self.recipe = {**parts, "clock": budget}, recipe

    def save(self) -> None:
        """All of the run, atomically."""
        save_state(self.path, self.parts, self.recipe)

    def resume(self) -> bool:
        """Put back what `save` wrote; False if there is nothing. SystemExit with one sentence if it does not fit."""
        if not self.path.is_file():
            return False
        try:
            load_state(self.path, self.parts, self.recipe, "begin anew by --restart, or choose another --out")
        except ValueError as error:
            raise SystemExit(str(error)) from error
        return True


def budget_of(options: argparse.Namespace) -> Budget:
    """--steps takes the place of --minutes."""
    return Budget(None if options.steps else options.minutes, options.steps, options.pause)


def recipe(options: argparse.Namespace, pictures: Sized) -> dict[str, object]:
    """What decides which pictures and which noise a step sees."""
    return {"batch": options.batch, "seed": options.seed, "pictures": len(pictures)}


def load_weights(path: Path, model: torch.nn.Module, average: Average) -> None:
    """Begin with the averaged weights of another run's state, and nothing else of it: after a change of what it
    learns from, say."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"], strict=False)  # how noise levels are weighed may have changed
    with torch.no_grad():
        for live, saved in zip(average.live, state["average"], strict=True):
            live.copy_(saved)
    average.restart()


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


def advance(
    budget: Budget,
    log: Log,
    batch: int,
    optimizer: torch.optim.Optimizer,
    average: Average,
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
