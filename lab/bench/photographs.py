"""What several photographs of a person bring, asked of true pictures, without sampling: one, two and four.

    python run.py bench photographs                     # 12 held-out people
    python run.py bench photographs --part 1/2          # every second person, in one of two processes; no page
    python run.py bench photographs --smoke             # a handful, for CI

A picture of a held-out person, drawn as a prompt says, is noised to a timestep and shown to the model with that
prompt, as `bench direction` does it. What the model then gets wrong inside the face, squared and summed, is its error;
each part of the pack, given photographs of the person, takes away some of it. So does any face; the same number of
photographs of somebody else with the same noun says how much. What was asked is kept in output/photographs: an
interrupted run goes on where it was, and the same call without `--part` writes its page of docs/results.
"""

from __future__ import annotations

import argparse
import inspect
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache

import torch

from ...evaluation.intervals import DRAWS, Interval, over_people, text_of
from ...guidance.reference_attention.settings import Settings as AttentionSettings
from ...models.faces.reference import FaceReference
from ...sampling.patch import patch
from ...sampling.reference_attention import patch as attend
from .campaign import Campaign, arguments, command, markdown
from .direction import OTHER, OWN, Probe, predicted
from .kept import keep, kept
from .portraits import SIZE, SOURCES, Case, conditioned, demo_inputs, drawn, face_of, settings_of, sitter, stranger
from .sources import ROOT, digest, of_file, of_source

PHOTOGRAPHS = (0, 4, 5, 6)
"""Views of a person that are given: the reference portrait, and three in random pose, light and expression."""
COUNTS = (1, 2, 4)
TIMES = (700, 400)
"""Timesteps t of the noised picture."""
WORD = "the plain word"
PIVOT, MEAN, GUIDANCE = "the pivot", "the pivot, plain mean", "RB-Guidance"
ATTENTION, FULL = "Reference Attention", "Reference Attention, each photograph in full"
PARTS = (PIVOT, MEAN, ATTENTION, FULL, GUIDANCE)
VARIANTS = (MEAN, FULL)
"""Other ways to use several photographs; with one they are the same."""

PAGE = """# One photograph or several

Made by `{command}`; do not edit.

{people} held-out people, {prompts} each that the portrait world draws as a prompt says, noised to t = {times} and shown
to the embedded model with that prompt (cfg 1). Its squared error inside the face, with the plain word, is 100%. Each
part of the pack is given {counts} photographs of the person: the reference portrait, frontal and softly lit, and others
in a random pose, light and expression. None of them is the picture that is asked for.

- **removed**: how much of that error the part takes away with the person's photographs.
- **the person's own**: that minus what it takes away with as many photographs of somebody else with the same noun: what
  is the person, not any face.
- **over one photograph**: the person's own part with several photographs minus that with one.

Means over t and then over the people, with 95% intervals, by resampling the people {draws:,} times; **bold** where 0
is outside.

- *The pivot* takes the mean direction of the photographs' embeddings; *plain mean* their mean
  (`combine_photographs`).
- *RB-Guidance* follows the photograph most like the picture, with the demo's settings.
- *Reference Attention* sees all photographs, which weigh together as much as one; *in full* lets each weigh as much as
  one does alone, which is strength {most} for {most} photographs.

{missing}{table}
"""


class Asker(Probe):
    """What the embedded model makes of noised pictures with photographs of somebody. Faces and truths are kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.face = lru_cache(maxsize=None)(self._face)
        self.truth = lru_cache(maxsize=None)(super().truth)

    def _face(self, person: int) -> FaceReference:
        """With all of PHOTOGRAPHS in which a face is found."""
        return face_of([sitter(person, view).picture for view in PHOTOGRAPHS], no_face="skip")

    def errors(self, case: Case, part: str) -> list[dict]:
        """The squared error inside the face at every t, with each number of photographs of each of the two."""
        people = {OWN: case.person} if part == WORD else {OWN: case.person, OTHER: stranger(case.person)}
        rows = []
        for whose, person in people.items():
            for count in COUNTS[:1] if part == WORD else COUNTS[1:] if part in VARIANTS else COUNTS:
                face = self.face(person)
                face = replace(face, more=face.more[: count - 1])
                found = self.answer(case, part, face, count)
                inside = self.truth(case)[1]
                errors = {t: (found["truth"] - found[t])[0, :, inside].double().square().sum() for t in TIMES}
                rows += [{"whose": whose, "count": count, "t": t, "error": float(error)} for t, error in errors.items()]
        return rows

    def answer(self, case: Case, part: str, face: FaceReference, count: int) -> dict[object, torch.Tensor]:
        """As `predicted`, with the part of the pack and so many photographs."""
        model, inputs = self.model, {}
        if part == GUIDANCE:
            model = patch(model, self.vae, settings_of({**demo_inputs(), "u": 1.0, "every": 1}))
        if part in (ATTENTION, FULL):
            strength = count if part == FULL else 1
            model = attend(model, self.vae, AttentionSettings(strength=float(strength)))
        if part == MEAN:
            inputs = {"combine_photographs": "mean"}
        positive = conditioned(self.clip, case, face, self.encoder if part in (PIVOT, MEAN) else None, **inputs)
        return predicted(model, self.truth(case)[0], positive, self.negative, TIMES, 1000 * case.person)


Errors = dict[tuple[Case, str], list[dict]]
"""Of each case and part."""


def asked(campaign: Campaign) -> Errors:
    """What is not known is asked, part by part, and kept at once."""
    options, asker = campaign.options, None
    file = options.store / "rows.jsonl"
    files = [of_file(getattr(options, name)) for name in ("checkpoint", "encoder")]
    functions = Probe, Asker, predicted, face_of, conditioned, drawn, sitter
    key = digest(SIZE, TIMES, files, torch.__version__, of_source(*SOURCES), *map(inspect.getsource, functions))
    rows = kept(file, lambda row: ((row["key"], Case(row["person"], row["prompt"]), row["part"]), row["errors"]))
    cases = campaign.cases()
    for part in (WORD, *options.parts):
        for case in cases:
            if (key, case, part) in rows or case.person % campaign.parts != campaign.part - 1:
                continue
            asker = asker or Asker(options)
            rows[key, case, part] = asker.errors(case, part)
            keep(file, {"key": key, **asdict(case), "part": part, "errors": rows[key, case, part]})
            print(f"{part}, person {case.person}", flush=True)
    return {(case, part): found for (known, case, part), found in rows.items() if known == key and case in cases}


Removed = dict[Case, float]


def removed(rows: Errors, part: str, count: int) -> tuple[Removed, Removed]:
    """By case, the mean over t of the share of the plain word's error that a part takes away: with the own photographs,
    and that minus the share with somebody else's."""
    own, apart = {}, {}
    for case in (case for case, known in rows if known == part):
        plain = {row["t"]: row["error"] for row in rows[case, WORD]}
        share = {
            whose: 1 - sum(row["error"] / plain[row["t"]] / len(plain) for row in rows[case, part]
                           if (row["whose"], row["count"]) == (whose, count))
            for whose in (OWN, OTHER)
        }  # fmt: skip
        own[case], apart[case] = share[OWN], share[OWN] - share[OTHER]
    return own, apart


def over(values: Removed, minus: Removed | None = None) -> Interval | None:
    """Over people."""
    less = minus or dict.fromkeys(values, 0.0)
    return over_people((case.person, value - less[case]) for case, value in values.items())


def table(rows: Errors, parts: Sequence[str]) -> str:
    """Markdown."""
    lines = [["", "photographs", "removed, %", "the person's own, %", "over one photograph, points"]]
    for part in parts:
        one = removed(rows, {MEAN: PIVOT, FULL: ATTENTION}.get(part, part), 1)[1]
        for count in COUNTS[1:] if part in VARIANTS else COUNTS:
            own, apart = removed(rows, part, count)
            cells = [over(own), over(apart), over(apart, one) if count > 1 else None]
            lines.append([part, str(count), *(text_of(cell, 100, 2, True) for cell in cells)])
    return markdown(lines)


def page(campaign: Campaign, rows: Errors) -> str:
    absent = [part for part in PARTS if part not in campaign.options.parts]
    missing = f"Not measured here: {', '.join(f'*{part}*' for part in absent)}.\n\n" if absent else ""
    return PAGE.format(
        command=command("photographs"), people=len({case.person for case, _ in rows}), draws=DRAWS,
        prompts="one picture" if campaign.options.prompts == 1 else f"{campaign.options.prompts} pictures",
        times=", ".join(map(str, TIMES)), counts=f"{', '.join(map(str, COUNTS[:-1]))} and {COUNTS[-1]}",
        most=COUNTS[-1], missing=missing, table=table(rows, campaign.options.parts),
    )  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = arguments("photographs", identities=12, prompts=1)
    made.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, metavar="NAME", help="only these")
    made.set_defaults(store=ROOT / "output" / "photographs")
    return made


def main(words: list[str]) -> int:
    options = parser().parse_args(words)
    logging.getLogger("omniportrait").setLevel(logging.ERROR)
    campaign = Campaign(options)
    rows = asked(campaign)
    if campaign.parts == 1:
        campaign.publish(page(campaign, rows))
    return 0
