"""SPF-Portrait's rows: how each is trained, and its LoRA."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Literal

import torch

from ...demo.architecture import CLIP
from ...training.files import write_tensors, write_whole
from ...training.settings import Data
from ...training.spf_portrait import config as settings
from ...training.spf_portrait.dual_path import TERMS
from ...training.spf_portrait.task import EXPORT, SpfTask
from ...training.trainer import Trainer, states
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
STRENGTHS = {NAIVE: (0.6, 0.75, 0.85, 0.92, 1.25), OURS: (0.75, 1.25)}
"""Of Load LoRA. The attribute goes somewhere below 1, so that is where an ordinary LoRA's curve has its points."""


@dataclass(frozen=True)
class Row:
    """A line of the table. changes: settings that differ from the recipe's. fit: whether all steps are stage 1. how:
    the original is not trained; gated makes pictures by eps_ref + S (eps_res - eps_ref) with the LoRA of the same
    changes; purecc has another stage 2 (spf_purecc.py). strength: of Load LoRA. balanced: whether the terms weigh what
    they do in ours: without a gate they are larger, and would be scaled down for it."""

    name: str
    changes: Mapping[str, object] = field(default_factory=dict)
    fit: bool = False
    strength: float = 1.0
    how: Literal["lora", "original", "gated", "purecc"] = "lora"
    balanced: bool = False

    @property
    def training(self) -> str:
        """Equal for rows that need the same training; a balanced one needs ours first, which changes nothing."""
        changes = {} if self.balanced else self.changes
        return self.how if self.how == "original" else json.dumps([changes, self.fit, self.how == "purecc"])


def _rows() -> tuple[Row, ...]:
    rank = {"rank": 8, "alpha": 8.0}
    return (
        Row("original", how="original"),
        Row("naive, all of cross-attention", {"learn": "attn2", "rate": 4e-4}, fit=True),  # the base's own rate
        Row(NAIVE, rank, fit=True),
        *(Row(f"{NAIVE}, strength {s:g}", rank, fit=True, strength=s) for s in STRENGTHS[NAIVE]),
        Row(OURS),
        *(Row(f"{OURS}, strength {s:g}", strength=s) for s in STRENGTHS[OURS]),
        Row("without text-consistent", {"objective.text": 0.0}),
        Row("without fine-grained", {"objective.fine": 0.0}),
        Row("without enhancement", {"enhance.kind": "none"}),
        Row("without the map", {"objective.control.gate": "none"}, balanced=True),
        Row("direct CLIP", {"enhance.kind": "direct"}),
        Row("without the null path", {"objective.null_path": 0.0}),
        Row("PureCC's objective", CHANGES, how="purecc"),
        Row("gated at inference", rank, fit=True, how="gated"),
    )


ROWS = {row.name: row for row in _rows()}


@dataclass(frozen=True)
class Place:
    """Where a benchmark keeps what it makes. measures: the folder of `make attribute-measures`. steps, fit: of a
    training. pictures: of a data set. part: of the processes that share the store; each fills a cache of its own."""

    store: Path
    measures: Path
    checkpoint: Path
    steps: int
    fit: int
    pictures: int
    part: int = 1

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
        towers = self.measures / TOWERS
        given = {
            "steps": self.steps, "fit": self.steps if row.fit else self.fit, "seed": seed, "report_every": 10**6,
            "enhance.kind": "difference", "enhance.clip": str(towers), "log_every": 1,
            "target": ATTRIBUTES[attribute].phrase, "start": str(start) if start else None,
        }  # fmt: skip
        given |= {"objective.null_path": 0.0} if row.fit else {}
        given |= dict(row.changes)
        if row.balanced:
            given |= {"objective.balance": "fixed"} | factors_of(self.config(ROWS[OURS], attribute, seed, start))
        named = given | {"start": of_file(start) if start else None, "enhance.clip": of_file(towers)}
        name = digest(named, attribute, self.pictures, of_file(self.base), code(row.how == "purecc"))
        places = {
            "checkpoint": str(self.base), "out": str(self.store / "runs" / name),
            "data.shards": [str(self.data(attribute))], "data.cache": str(self.store / f"cache-{self.part}"),
        }  # fmt: skip
        return settings.read("demo", given | places)


@lru_cache
def code(pure: bool = False) -> str:
    """Of what trains, as it was when this process first asked: an edit while it runs is not a new training."""
    return of_source(*CODE, *(["lab/bench/spf_purecc.py"] if pure else []))


def factors_of(config: settings.Config) -> dict[str, float]:
    """The weights that a training has found for its terms, as settings; it is made now where it is not there."""
    trained(config)
    state = torch.load(states(config.folder)[-1], map_location="cpu", weights_only=True)
    found = state["model"]["factors"].tolist()
    return {f"objective.{name}": round(value, 6) for name, value in zip(TERMS, found, strict=True)}


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
    done, lora = config.folder / "done.json", config.folder / EXPORT
    if done.is_file():
        return lora
    config.check()
    if config.fit < config.steps and not pure and not states(config.folder):  # PureCC's states hold more
        begin_with_stage_one(config)
    trainer = run(config, PureTask if pure else SpfTask)
    write_whole(done, json.dumps({"steps": config.steps, "seconds": trainer.clock.spent}).encode())
    return lora


def begin_with_stage_one(config: settings.Config) -> None:
    """Put the state after stage 1 into a run's folder. It is the same for all that differ in stage 2 alone, so it is
    made once by each of the processes that share the store, as their caches are."""
    plain = settings.Objective(drop=config.objective.drop, weighting=config.objective.weighting, null_path=0.0)
    same = replace(config, objective=plain, enhance=settings.Enhance(), out="", checkpoint="", start=None, data=Data())
    of = [of_file(Path(each)) for each in (config.checkpoint, config.start) if each]
    name = digest(asdict(same), of, config.data.shards, config.data.cache, code())
    first = replace(config, objective=plain, enhance=settings.Enhance(), out=str(config.folder.parent / f"fit-{name}"))
    state = first.folder / "states" / f"{config.fit:09d}.pt"
    if not state.is_file():
        run(first, SpfTask, stop_at=config.fit)
    (config.folder / "states").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(first.folder / "log.jsonl", config.folder / "log.jsonl")
    write_whole(config.folder / "states" / state.name, state.read_bytes())


def run(config: settings.Config, kind: type[SpfTask], stop_at: int | None = None) -> Trainer:
    """A training, to its end or to a step, from its newest state on."""
    from ...training.base import load_base
    from ...training.command import join
    from ...training.data.dataset import with_cache

    config.folder.mkdir(parents=True, exist_ok=True)
    accelerator, base = join(config), load_base(config)
    task = kind(config, base)
    task.data = with_cache(task.data, config, base, accelerator)
    trainer = Trainer(task, accelerator, None)
    trainer.resume()
    trainer.run(Log(config.folder / "log.jsonl"), stop_at)
    return trainer


class Log:
    """A reporter without pictures: a line a step."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def step(self, step: int, numbers: dict[str, float]) -> None:
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"step": step} | numbers) + "\n")
        if step % 25 == 0:
            print(f"  step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in numbers.items()), flush=True)


def minutes_of(config: settings.Config) -> float:
    """Of the whole training, both stages."""
    return json.loads((config.folder / "done.json").read_text(encoding="utf-8"))["seconds"] / 60


def seconds_a_step(config: settings.Config) -> dict[str, float]:
    """The median of each stage, of the run's log."""
    lines = [json.loads(line) for line in (config.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    parts: dict[str, list[float]] = {"fit": [], "align": []}
    for line in lines:
        parts["fit" if line["step"] <= config.fit else "align"].append(line["seconds"])
    return {name: median(seconds) for name, seconds in parts.items() if seconds}
