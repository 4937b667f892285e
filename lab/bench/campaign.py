"""Many portraits judged, case by case: the options, the results file and the loop that the benchmarks share."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from ...demo.sampling import SAMPLING
from ..measures.separation import THRESHOLDS
from ..measures.text import WEIGHTS
from ..world.prompts import HELD_OUT_PROMPTS
from .judge import Judge
from .kept import keep, kept, part_of
from .portraits import Case, Studio, Variant, defaults
from .sources import ROOT, digest

DEMO = ROOT / "demo" / "weights"


def arguments(name: str, identities: int, prompts: int) -> argparse.ArgumentParser:
    """What all benchmarks of portraits take."""
    parser = argparse.ArgumentParser(prog=f"run.py bench {name}", allow_abbrev=False)
    parser.add_argument("--identities", type=int, default=identities, metavar="N", help="held-out people")
    parser.add_argument(
        "--first", type=int, default=0, metavar="N",
        help="number of the first of them: what was chosen on some people is to be confirmed on others",
    )  # fmt: skip
    parser.add_argument(
        "--prompts", type=int, default=prompts, metavar="N", help=f"for each, at most {len(HELD_OUT_PROMPTS)}"
    )
    parser.add_argument("--checkpoint", type=Path, default=DEMO / "omniportrait_demo.safetensors", metavar="FILE")
    parser.add_argument("--encoder", type=Path, default=DEMO / "omniportrait_demo_pivot.safetensors", metavar="FILE")
    parser.add_argument("--text-measure", type=Path, default=WEIGHTS, metavar="FILE", help="of `make measures`")
    parser.add_argument("--thresholds", type=Path, default=THRESHOLDS, metavar="FILE", help="of `make measures`")
    parser.add_argument(
        "--set", type=assignment, action="append", default=[], metavar="NAME=VALUE",
        help="an input of RB-Guidance KSampler, or attention_ and one of Reference Attention, for all variants, as "
        "gain=200 or attention_strength=2 (default: what the demo's workflow has, and no Reference Attention)",
    )  # fmt: skip
    parser.add_argument("--part", type=part_of, default="1/1", metavar="I/N", help="every N-th person; no page")
    parser.add_argument("--smoke", action="store_true", help="2 people, 1 prompt, 4 steps; writes no page")
    parser.add_argument("--store", type=Path, default=ROOT / "output" / "portraits", metavar="FOLDER")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / f"{name}.md", metavar="FILE")
    return parser


def named(text: str) -> tuple[str, dict[str, object]]:
    """`NAME: INPUT=VALUE …` of --also."""
    name, colon, words = text.rpartition(":")
    if not colon or not words.split():
        raise argparse.ArgumentTypeError(f"{text!r} should read NAME: INPUT=VALUE ...")
    return name.strip(), dict(map(assignment, words.split()))


def assignment(text: str) -> tuple[str, object]:
    """NAME=VALUE with the value in the type of that input. argparse.ArgumentTypeError names the inputs there are."""
    name, _, value = text.partition("=")
    known = defaults()
    if name not in known:
        raise argparse.ArgumentTypeError(f"RB-Guidance KSampler has no input {name!r}; it has {', '.join(known)}")
    return name, converted(value, known[name])


def converted(value: str, default: object) -> object:
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[value.lower()]
        return type(default)(value)
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{value!r} is no {type(default).__name__}") from None


class Campaign:
    """Judged portraits, kept in the store: pictures as PNG, rows in rows.jsonl. SystemExit names a file that is
    missing."""

    def __init__(self, options: argparse.Namespace) -> None:
        if options.smoke:
            options.identities, options.prompts = 2, 1
            options.set = [("steps", 4), *options.set]
        for option in ("checkpoint", "encoder", "text_measure", "thresholds"):
            if not getattr(options, option).is_file():
                raise SystemExit(
                    f"{getattr(options, option)} is not there: `make base`, `train pivot-encoder` and `make measures` "
                    f"of run.py write these files; give another one by --{option.replace('_', '-')}."
                )
        self.options = options
        self.studio = Studio(options.checkpoint, options.store, dict(options.set))
        self.judge = Judge(options.text_measure, options.thresholds)
        self.file = options.store / "rows.jsonl"
        self.part, self.parts = options.part

    def cases(self) -> list[Case]:
        """People in whose reference portrait a face is found, times their prompts: each person's begin where the last
        one's ended."""
        wanted = range(self.options.first, self.options.first + self.options.identities)
        people = [i for i in wanted if self.judge.known(i) is not None]
        if missing := len(wanted) - len(people):
            print(f"{missing} people left out: no face is found in their reference portrait", flush=True)
        each, all_prompts = min(self.options.prompts, len(HELD_OUT_PROMPTS)), len(HELD_OUT_PROMPTS)
        return [Case(person, (person * each + i) % all_prompts) for person in people for i in range(each)]

    def key(self, variant: Variant) -> str:
        """Equal for rows that would be equal."""
        return digest(self.studio.key(variant), self.judge.key)

    def known(self) -> dict[tuple[str, int, int], dict]:
        """Rows by key, person and prompt; a line that was cut short is left out."""
        return kept(self.file, lambda row: ((row["key"], row["person"], row["prompt"]), row))

    def measure(self, variants: Sequence[Variant]) -> dict[str, list[dict]]:
        """All cases of all variants, by the variant's name; only what is not known is made. Each row is kept at once,
        so that an interrupted run goes on where it was."""
        cases, rows = self.cases(), self.known()
        mine = [case for case in cases if case.person % self.parts == self.part - 1]
        keys = {variant.name: self.key(variant) for variant in variants}
        apart = {keys[v.name]: v for v in reversed(variants)}.values()  # several names may mean the same
        todo = [(c, v) for c in mine for v in apart if (keys[v.name], c.person, c.prompt) not in rows]
        for variant in {v.name: v for _, v in todo if v.source == "generated"}.values():
            self._check(variant)
        print(f"{len(mine)} cases, {len(apart)} variants, {len(todo)} portraits to judge", flush=True)
        for number, (case, variant) in enumerate(todo, 1):
            row = self._row(case, variant, keys[variant.name])
            rows[row["key"], case.person, case.prompt] = row
            print(f"{number}/{len(todo)} {told(row)}  {variant.name}", flush=True)
        return {v.name: [row for c in cases if (row := rows.get((keys[v.name], c.person, c.prompt)))] for v in variants}

    def _check(self, variant: Variant) -> None:
        try:
            self.studio.check(variant)
        except ValueError as error:
            raise SystemExit(f"{variant.name}: {error}") from error

    def times(self, variants: Sequence[Variant], rounds: int = 5) -> dict[str, float]:
        """Seconds of sampling over those of `Variant.off`, made right after it: the median of so many rounds, now and
        one after another, whatever the kept pictures took when they were made."""
        case = self.cases()[0]
        shares: dict[str, list[float]] = {variant.name: [] for variant in variants}
        for number in range(rounds + 1):
            for variant in variants:
                guided = self.studio.seconds(case, variant)
                share = guided / self.studio.seconds(case, variant.off)
                if number:  # the first warms up
                    shares[variant.name].append(share)
        return {name: median(found) for name, found in shares.items()}

    def _row(self, case: Case, variant: Variant, key: str) -> dict:
        inputs = self.studio.inputs | dict(variant.inputs)
        guided = variant.source == "generated" and inputs["strength"] > 0
        changed = guided or (variant.source == "generated" and inputs["attention_strength"] > 0)
        off = self.studio.portrait(case, variant.off) if changed else None
        numbers = self.judge(
            case, self.studio.portrait(case, variant), off, guided and bool(inputs["background_masking"]),
            drawn=variant.source == "drawn",
        )  # fmt: skip
        row = {"key": key, "variant": variant.name, "person": case.person, "prompt": case.prompt, **numbers}
        keep(self.file, row)
        return row

    def publish(self, page: str) -> None:
        """Print the page, and write it unless this is a smoke run."""
        if not self.options.smoke:
            self.options.page.write_text(page, encoding="utf-8")
        print(page)

    def told_settings(self) -> str:
        """What the portraits of a page have in common."""
        inputs, own = self.studio.inputs, defaults()
        changed = [f", {name} {inputs[name]}" for name in own if name not in SAMPLING and inputs[name] != own[name]]
        return (
            f"{inputs['sampler_name']}, {inputs['scheduler']}, {inputs['steps']} steps, cfg {inputs['cfg']:g}"
            f"{''.join(changed)}; everything else as the nodes have it by default"
        )


def told(row: dict) -> str:
    """A row in short, for the log."""
    distance, kept, guided = row["distance"], row["kept"], row["guided"]
    return "  ".join([
        f"person {row['person']:3d} prompt {row['prompt']:2d}",
        "no face      " if distance is None else f"distance {distance:.2f}",
        f"margin {row['margin'] or 0:+.2f}",
        f"moles {'none' if kept is None else format(kept, '.2f')}",
        f"text {row['text']:.1f}",
        "not guided " if guided is None else f"guided {guided:4.0%}",
    ])  # fmt: skip


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table; the first line is its head."""
    head, *others = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *others))


def command(name: str) -> str:
    """The command line as people may repeat it: paths by their last name."""
    given = sys.argv[sys.argv.index(name) + 1 :] if name in sys.argv else sys.argv[1:]
    words = [re.sub(r"[^\s=]*/", "", word) for word in given]
    return shlex.join(["python", "run.py", "bench", name, *words])
