"""What a run shows of itself: a progress bar, a log, tensorboard curves, and sample sheets every n steps."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from ...models.pivot.encoder import PivotEncoder
from ..data.index import write_whole
from .base import Base
from .config import Config
from .sheets import sheet
from .state import Average

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
    """Lives on the main process. start: the step from which the run goes on."""

    def __init__(
        self, config: Config, base: Base, encoder: PivotEncoder, average: Average, samples: object, start: int
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        self.config, self.base, self.encoder, self.average, self.samples = config, base, encoder, average, samples
        self.folder = Path(config.out).expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)
        cut_log(self.folder / "log.jsonl", start)
        self.curves = SummaryWriter(self.folder / "tensorboard", purge_step=start + 1)
        self.bar = tqdm(total=config.steps, initial=start, unit="step", dynamic_ncols=True, disable=None)
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
        self.bar.set_postfix_str(f"loss {means['loss']:.4f}, localisation {means['localisation']:.4f}", refresh=False)
        for name, value in means.items():
            self.curves.add_scalar(name, value, step)
        line = json.dumps({"step": step} | {name: float(f"{value:.7g}") for name, value in means.items()})
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self.bar.disable:
            print(line, flush=True)

    def sheets(self, step: int) -> None:
        """A sheet of fixed samples: face as the tower sees it, picture, attention of e_mix, mask, portrait made now."""
        from PIL import Image

        with self.average.used():
            canvas = sheet(self.base, self.encoder, self.samples, self.config)
        self.base.make_room()
        path = self.folder / "sheets" / f"{step:09d}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = (canvas.clamp(0, 1) * 255).round().byte()
        Image.fromarray(pixels.movedim(0, -1).numpy()).save(path, quality=90)
        self.curves.add_image("samples", pixels, step)
        self.curves.flush()

    def close(self) -> None:
        self.bar.close()
        self.curves.close()
