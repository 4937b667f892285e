"""What a run shows of itself: a progress bar, a log, tensorboard curves, and sample sheets every n steps."""

from __future__ import annotations

import json
import logging
from itertools import takewhile
from pathlib import Path

from .files import write_whole
from .loop import Average
from .task import Task

log = logging.getLogger(__name__)


def cut_log(path: Path, start: int) -> None:
    """Drop what a log says of the steps after `start`, which a resumed run takes again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= start:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # cut short when the run was killed
    write_whole(path, "".join(kept).encode())


class Reporter:
    """Lives on the main process. average: of what the task's model learns. start: the step from which the run goes
    on."""

    def __init__(self, task: Task, average: Average, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        self.task, self.average = task, average
        self.config, self.folder = task.config, task.config.folder
        self.folder.mkdir(parents=True, exist_ok=True)
        cut_log(self.folder / "log.jsonl", start)
        self.curves = SummaryWriter(self.folder / "tensorboard", purge_step=start + 1)
        self.bar = tqdm(total=self.config.steps, initial=start, unit="step", dynamic_ncols=True, disable=None)
        self.sums: dict[str, float] = {}
        self.count = 0

    def step(self, step: int, numbers: dict[str, float]) -> None:
        """Take one step's numbers; every log_every steps their means are written to log.jsonl and tensorboard."""
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in numbers.items()}
        self.count += 1
        self.bar.update()
        if step % self.config.log_every:
            return
        means = {name: value / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        losses = takewhile(lambda name: name != "gradient", means)  # see Trainer.step
        self.bar.set_postfix_str(", ".join(f"{name} {means[name]:.4f}" for name in losses), refresh=False)
        for name, value in means.items():
            self.curves.add_scalar(name, value, step)
        line = json.dumps({"step": step} | {name: float(f"{value:.7g}") for name, value in means.items()})
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self.bar.disable:
            print(line, flush=True)

    def sheets(self, step: int) -> None:
        """The task's sheet, with the averaged weights."""
        from PIL import Image

        with self.average.used():
            canvas = self.task.sheet()
        self.task.base.make_room()
        path = self.folder / "sheets" / f"{step:09d}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = (canvas.clamp(0, 1) * 255).round().byte()
        Image.fromarray(pixels.movedim(0, -1).numpy()).save(path, quality=90)
        self.curves.add_image("samples", pixels, step)
        self.curves.flush()

    def close(self) -> None:
        self.bar.close()
        self.curves.close()
