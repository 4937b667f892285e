"""SPF-Portrait against its rivals: does a LoRA add an attribute, and what else does it change?

    python run.py bench spf                               # all rows, hat, 60 prompts: hours
    python run.py bench spf --rows ours "LoRA, rank 8" --page FILE      # some of them
    python run.py bench spf --attributes hat glasses "face paint" --seeds 2
    python run.py bench spf --part 1/2                    # half of the trainings with their rows, in one of two
                                                          # processes; no page
    python run.py bench spf --smoke                       # a handful, for CI

For each prompt and seed: the original model on the base text; each row's model on the complete text (does it show the
attribute, and is the rest as the original had it?) and on the base text alone (does it leave the attribute out?). Data
sets, trainings, pictures and numbers are kept: an interrupted benchmark goes on by the same command. A training is
known by the code as it was when the process began; for hours of work take a clone that nobody edits.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from ..make.attribute_measures import DEMO, JUDGES, SEGMENTER, make
from ..measures.segments import frechet
from ..world.attributes import ATTRIBUTES
from .campaign import command
from .kept import keep, kept, part_of
from .sources import ROOT, digest, of_file, of_source
from .spf_judge import LEAST, Judge
from .spf_maps import map_lines
from .spf_page import page, plot
from .spf_pictures import Case, Customised, Studio
from .spf_runs import OURS, ROWS, Place, Row, minutes_of, seconds_a_step, trained
from .spf_sequence import sequence_lines

TEXTS = ("complete", "base")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="run.py bench spf", description=__doc__.split("\n")[0], allow_abbrev=False)
    made.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    made.add_argument("--attributes", nargs="+", choices=ATTRIBUTES, default=["hat"])
    made.add_argument("--seeds", type=int, default=1, help="trainings of each row (default: 1)")
    made.add_argument("--prompts", type=int, default=60, help="30 texts with either subject, then again (default: 60)")
    made.add_argument("--steps", type=int, default=450, help="of a training (default: the recipe's)")
    made.add_argument("--fit", type=int, default=250, help="of these, stage 1")
    made.add_argument("--pictures", type=int, default=192, help="of each tailored set")
    made.add_argument("--measure-people", type=int, default=400, help="people that the measures learn from")
    made.add_argument("--measure-steps", type=int, default=400)
    made.add_argument("--sampling-steps", type=int, help="of the sampler (default: the demo's)")
    made.add_argument("--sequence", action="store_true", help="also two attributes in a row: the forgetting matrix")
    made.add_argument("--checkpoint", type=Path, default=DEMO, metavar="FILE")
    made.add_argument(
        "--part", type=part_of, default="1/1", metavar="I/N", help="every N-th training and its rows; no page"
    )
    made.add_argument("--store", type=Path, metavar="FOLDER", help="default: output/spf")
    made.add_argument(
        "--page", type=Path, metavar="FILE", help="default: the one in docs/results, where all rows are asked for"
    )
    made.add_argument("--smoke", action="store_true", help="two rows, one prompt, a few steps; writes no page")
    return made


SMOKE = {
    "rows": ["original", OURS], "prompts": 1, "steps": 4, "fit": 2, "pictures": 8, "measure_people": 6,
    "measure_steps": 4, "sampling_steps": 2,
}  # fmt: skip


def main(words: list[str]) -> int:
    options = parser().parse_args(words)
    if options.smoke:
        named = {} if options.rows == list(ROWS) else {"rows": options.rows}
        vars(options).update(SMOKE | named)
    options.store = options.store or ROOT / "output" / ("spf-smoke" if options.smoke else "spf")
    if options.page is None and options.rows == list(ROWS):
        options.page = ROOT / "docs" / "results" / "spf.md"
    part, parts = options.part
    bench = Bench(options)
    rows = [ROWS[name] for name in options.rows]
    for row in shared(rows, part, parts):
        bench.measure(row)
    if parts > 1:
        return 0
    text = bench.page(rows)
    if options.page and not options.smoke:
        options.page.write_text(text, encoding="utf-8")
    print(text)
    return 0


def shared(rows: Sequence[Row], part: int, parts: int) -> list[Row]:
    """The rows of one process of several: those that need the same training go to the same one."""
    trainings = list(dict.fromkeys(row.training for row in rows))
    return [row for row in rows if trainings.index(row.training) % parts == part - 1]


class Bench:
    """One call of the benchmark."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        store, (part, parts) = options.store, options.part
        recipe = options.measure_people, max(6, options.measure_people // 8), options.measure_steps
        learnt = of_source("lab/learning/attribute_measures.py", "lab/measures/segments.py", "lab/world")
        measures = store / f"measures-{digest(recipe, of_file(options.checkpoint), learnt)}"
        if parts > 1 and not (measures / JUDGES).is_file():
            raise SystemExit("Make the measures in one process first: the same call with --rows original, no --part.")
        make(measures, *recipe, options.checkpoint)
        self.place = Place(store, measures, options.checkpoint, options.steps, options.fit, options.pictures, part)
        self.cases = [Case(number) for number in range(options.prompts)]
        self.file = store / "rows.jsonl"
        some = self.place.config(ROWS[OURS], options.attributes[0], 0)
        self.studio = Studio(some, store, options.sampling_steps)
        self.judge = Judge(measures, options.checkpoint)
        self.judged = digest(
            of_file(measures / SEGMENTER), of_file(measures / JUDGES),
            of_source("lab/bench/spf_judge.py", "lab/measures/segments.py"),
        )  # fmt: skip

    def model(self, row: Row, attribute: str, seed: int) -> Customised:
        if row.how == "original":
            return Customised()
        lora = trained(self.place.config(row, attribute, seed), row.how == "purecc")
        return Customised(((lora, row.strength),), row.how == "gated")

    def measure(self, row: Row) -> list[dict]:
        """The row's numbers for each attribute, seed, prompt and text; only what is not known is made."""
        found = []
        for attribute in self.options.attributes:
            for seed in range(1 if row.how == "original" else self.options.seeds):
                print(f"{row.name}: {attribute}, training {seed}", flush=True)
                model = self.model(row, attribute, seed)
                found += self.numbers(row.name, model, (attribute,), seed)
        return found

    def numbers(self, name: str, model: Customised, attributes: Sequence[str], seed: int) -> list[dict]:
        """Of one model, asked for these attributes. A gated one is not asked on the base text: it is the original."""
        phrase = ", ".join(ATTRIBUTES[attribute].phrase for attribute in attributes)
        loras = [[of_file(lora), strength] for lora, strength in model.loras]
        own = digest(self.studio.code, self.judged, loras, model.gated, attributes)
        known = kept(self.file, lambda row: ((row["key"], row["prompt"], row["text"]), row))
        rows = []
        for case in self.cases:
            for text in TEXTS[:1] if model.gated else TEXTS:
                place = own, case.number, text
                if place not in known:
                    told = {"key": own, "row": name, "attribute": ", ".join(attributes), "seed": seed}
                    told |= {"prompt": case.number, "text": text}
                    known[place] = told | self._row(case, model, attributes, phrase, text == "complete")
                    keep(self.file, known[place])
                rows.append(known[place] | {"row": name})
        return rows

    def _row(self, case: Case, model: Customised, attributes: Sequence[str], phrase: str, asked: bool) -> dict:
        picture, original = self.studio.picture(case, model, phrase if asked else ""), Customised()
        return self.judge(picture, self.studio.picture(case, original), case.words, phrase, attributes, asked)

    def distances(self, row: Row) -> float | None:
        """Fréchet distance of the row's complete pictures from the original's, over all attributes and trainings."""
        if len(self.cases) < LEAST:
            return None
        made = []
        for attribute in self.options.attributes:
            for seed in range(1 if row.how == "original" else self.options.seeds):
                model, phrase = self.model(row, attribute, seed), ATTRIBUTES[attribute].phrase
                made += [self.studio.picture(case, model, phrase) for case in self.cases]
        original = [self.studio.picture(case, Customised()) for case in self.cases]
        one, other = (self.judge.deep(torch.stack(each)) for each in (made, original))
        return frechet(one, other)

    def page(self, rows: Sequence[Row]) -> str:
        results = {row.name: self.measure(row) for row in rows}
        configs = {
            row.name: self.place.config(row, self.options.attributes[0], 0)
            for row in rows
            if row.how in ("lora", "purecc")
        }
        seconds = {}
        for name, config in configs.items():
            if config.folder not in seconds:  # one training may be many rows
                seconds[config.folder] = {"name": name, "minutes": minutes_of(config)} | seconds_a_step(config)
        lines = page(command("spf"), results, {row.name: self.distances(row) for row in rows}, seconds.values())
        if OURS in configs:
            lines += map_lines(self.studio, self.model(ROWS[OURS], self.options.attributes[0], 0),
                               self.options.attributes[0], max(2, min(24, len(self.cases))))  # fmt: skip
        if self.options.sequence:
            lines += sequence_lines(self.place, self.numbers)
        if self.options.page and not self.options.smoke:
            image = self.options.page.parent / "images" / "spf_tradeoff.png"
            plot(image, results)
            lines += ["## Response over preservation", "", f"![trade-off](images/{image.name})", ""]
        return "\n".join(lines) + "\n"
