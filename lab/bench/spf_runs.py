"""SPF-Portrait's rows: how each is trained, and its LoRA."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

import torch

from ...demo.architecture import CLIP
from ...training.files import write_tensors, write_whole
from ...training.spf_portrait import config as settings
from ..learning.text import tokenize
from ..make.attribute_measures import TOWERS
from ..world.attributes import ATTRIBUTES
from ..world.shards import write_portraits
from ..world.tailored import Tailored
from .sources import digest, of_file, of_source
from .spf_purecc import CHANGES, PureTask

TABLE = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
CODE = ("training/spf_portrait", "training/trainer.py", "training/loop.py", "training/base.py",
        "guidance/spf_portrait", "backbone")  # fmt: skip
"""What a trained LoRA depends on."""
OURS, NAIVE = "ours", "LoRA, rank 8"
STRENGTHS = (0.25, 0.5, 0.75, 1.25, 1.5)


@dataclass(frozen=True)
class Row:
    """A line of the table. changes: settings that differ from the recipe's. fit: whether all steps are stage 1. how:
    the original is not trained; gated makes pictures by eps_ref + S (eps_res - eps_ref) with the LoRA of the same
    changes; purecc has another stage 2 (spf_purecc.py). strength: of Load LoRA."""

    name: str
    changes: Mapping[str, object] = field(default_factory=dict)
    fit: bool = False
    strength: float = 1.0
    how: Literal["lora", "original", "gated", "purecc"] = "lora"


def _rows() -> tuple[Row, ...]:
    scaled = {name: {"objective.text": s, "objective.fine": s, "objective.enhance": s / 2} for name, s in
              (("a third of the alignment", 0.3), ("three times the alignment", 3.0))}  # fmt: skip
    return (
        Row("original", how="original"),
        Row("naive, all of cross-attention", {"learn": "attn2"}, fit=True),
        *(Row(f"LoRA, rank {rank}", {"rank": rank, "alpha": float(rank)}, fit=True) for rank in (4, 8, 16)),
        *(Row(f"{NAIVE}, strength {s:g}", {"rank": 8, "alpha": 8.0}, fit=True, strength=s) for s in STRENGTHS),
        Row(OURS),
        *(Row(f"{OURS}, strength {s:g}", strength=s) for s in STRENGTHS),
        Row("without text-consistent", {"objective.text": 0.0}),
        Row("without fine-grained", {"objective.fine": 0.0}),
        Row("without enhancement", {"enhance.kind": "none"}),
        Row("without the map", {"objective.control.gate": "none"}),
        Row("noise difference alone", {"objective.control.gate": "difference"}),
        Row("literal map", {"objective.control.reading": "literal"}),
        Row("direct CLIP", {"enhance.kind": "direct"}),
        Row("without the null path", {"objective.null_path": 0.0}),
        *(Row(f"{OURS}, {name}", changes) for name, changes in scaled.items()),
        Row("PureCC's objective", CHANGES, how="purecc"),
        Row("gated at inference", {"rank": 8, "alpha": 8.0}, fit=True, how="gated"),
    )


ROWS = {row.name: row for row in _rows()}


@dataclass(frozen=True)
class Place:
    """Where a benchmark keeps what it makes. steps, fit: of a training. pictures: of a data set."""

    store: Path
    checkpoint: Path
    steps: int
    fit: int
    pictures: int

    @property
    def base(self) -> Path:
        """The checkpoint whose text encoder tells the attributes' words apart."""
        path = self.store / f"base-{of_file(self.checkpoint)}.safetensors"
        if not path.is_file():
            with_words(self.checkpoint, path)
        return path

    def data(self, attribute: str) -> Path:
        """The folder of the tailored set."""
        folder = self.store / f"{attribute.replace(' ', '_')}-{self.pictures}"
        if not (folder / "train-000000.tar").is_file():
            print(f"rendering {self.pictures} pictures: {attribute}", flush=True)
            write_portraits(folder / "train-000000.tar", Tailored((attribute,), pictures=self.pictures))
        return folder

    def config(self, row: Row, attribute: str, seed: int, start: Path | None = None) -> settings.Config:
        """Of a training, in a folder that its settings and code name."""
        given = {
            "steps": self.steps, "fit": self.steps if row.fit else self.fit, "seed": seed, "report_every": 10**6,
            "enhance.kind": "difference", "enhance.clip": str(self.store / TOWERS), "log_every": 1,
            "target": ATTRIBUTES[attribute].phrase, "start": str(start) if start else None,
        }  # fmt: skip
        given |= {"objective.null_path": 0.0} if row.fit else {}
        given |= dict(row.changes)
        named = given | {"start": of_file(start) if start else None, "enhance.clip": of_file(self.store / TOWERS)}
        name = digest(row.how == "purecc", named, attribute, self.pictures, of_file(self.base), of_source(*CODE))
        places = {
            "checkpoint": str(self.base), "out": str(self.store / "runs" / name),
            "data.shards": [str(self.data(attribute))], "data.cache": str(self.store / "cache"),
        }  # fmt: skip
        return settings.read("demo", given | places)


def with_words(checkpoint: Path, file: Path) -> None:
    """A copy of the embedded model whose text encoder tells the attributes' words apart. Words that it never saw all
    have one vector, the mean of those seen; here the attributes' ones get a random step from it, as long as those of
    the others. What was seen stays as it is."""
    from safetensors.torch import load_file

    state = load_file(str(checkpoint))
    table = state[TABLE].float()
    mean = table.mode(0).values
    unseen = (table == mean).all(1)
    spread = (table[~unseen] - mean).std(0)
    words = tokenize([each.phrase for each in ATTRIBUTES.values()]).unique()
    for token in words[words < CLIP["eos_token_id"] - 1].tolist():
        if unseen[token]:
            random = torch.Generator().manual_seed(token)
            table[token] = mean + spread * torch.randn(len(mean), generator=random)
    write_tensors(file, state | {TABLE: table.to(state[TABLE].dtype)})


def trained(config: settings.Config, pure: bool = False) -> Path:
    """The LoRA of a training, made now or read; an interrupted one goes on. pure: by PureCC."""
    from ...training.base import load_base
    from ...training.command import join
    from ...training.data.dataset import with_cache
    from ...training.spf_portrait.task import EXPORT, SpfTask
    from ...training.trainer import Trainer

    done, lora = config.folder / "done.json", config.folder / EXPORT
    if done.is_file():
        return lora
    config.check()
    config.folder.mkdir(parents=True, exist_ok=True)
    accelerator, base = join(config), load_base(config)
    task = (PureTask if pure else SpfTask)(config, base)
    task.data = with_cache(task.data, config, base, accelerator)
    trainer, told = Trainer(task, accelerator, None), Log(config.folder / "log.jsonl")
    trainer.resume()
    trainer.run(told)
    write_whole(done, json.dumps({"steps": config.steps, "seconds": trainer.clock.spent}).encode())
    return lora


class Log:
    """A reporter without pictures: a line a step."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def step(self, step: int, numbers: dict[str, float]) -> None:
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"step": step} | numbers) + "\n")
        if step % 25 == 0:
            print(f"  step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in numbers.items()), flush=True)


def seconds_a_step(config: settings.Config) -> dict[str, float]:
    """The median of each stage, of the run's log."""
    lines = [json.loads(line) for line in (config.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    parts: dict[str, list[float]] = {"fit": [], "align": []}
    for line in lines:
        parts["fit" if line["step"] <= config.fit else "align"].append(line["seconds"])
    return {name: median(seconds) for name, seconds in parts.items() if seconds}
