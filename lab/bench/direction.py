"""Does the gradient of RB-Guidance point at the person? Asked of true pictures, without sampling.

    python run.py bench direction                               # PLAN, 20 held-out people
    python run.py bench direction --also "both: ensemble=1 t0=271"
    python run.py bench direction --part 1/2                    # every second person, in one of two processes; no page
    python run.py bench direction --smoke                       # a handful, for CI

A picture z_0 of a held-out person, drawn as a prompt says, is noised to a timestep t and shown to the model with that
prompt and the pivot of another picture of the person. What the model then gets wrong inside the face, r = z_0 -
denoised, is what guidance is there to mend: adding s g to the noise prediction moves `denoised` by s e, and the squared
error changes by s^2 |e|^2 - 2 s <r, e>. So the cosine of r and e says whether the gradient points the right way, s =
<r, e> / |e|^2 how strong it should be, and cos^2 how much of the error it can take away at best. The same with the
reference of somebody else (same noun, same pivot, same mask) tells what of this is the person, and what any face would
give; with z_0 itself as the reference, how much the features could tell at all.

Nothing is capped and nothing multiplied here, so gain, clip, strength, reduction and sigma_scale do not matter. Sums
are kept in output/directions: an interrupted run goes on where it was. After the parts, the same call without `--part`
writes docs/results/direction.md.
"""

from __future__ import annotations

import argparse
import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial

import comfy.sample
import comfy.samplers
import torch

import nodes as core

from ...backbone.clock import Clock
from ...evaluation.intervals import DRAWS, Interval, over_people, text_of
from ...guidance.omniportrait.mask import cover
from ...models.pivot.handle import load_handle
from ...sampling.patch import patch
from ...sampling.record import RECORDS_KEY
from ..world.shade import FACE_LABELS
from .campaign import Campaign, arguments, command, markdown, named
from .kept import keep, kept
from .portraits import (
    DEFAULTS,
    SIZE,
    SOURCES,
    Case,
    conditioned,
    defaults,
    demo_inputs,
    drawn,
    face_of,
    loaded,
    node,
    settings_of,
    sitter,
    stranger,
    wanted,
)
from .sources import ROOT, digest, of_file, of_source

TIMES = (900, 800, 700, 600, 450, 300)
"""Timesteps t of the noised picture."""
WINDOW = 600
"""u T of the paper."""
OWN, OTHER, ITSELF = "own", "other", "itself"
"""Whose picture is the reference: the person's reference portrait, somebody else's, or the very picture that is asked
for, which bounds what any reference can tell."""
KINDS = ("own", "own minus other", "the picture itself")
SCALES = {"gain": 1.0, "clip": 0.0, "u": 1.0, "every": 1}
"""Of the guidance: made anew at every t, neither multiplied nor capped."""
UNSCALED, DEMO = defaults() | SCALES, demo_inputs() | SCALES
"""What the node has by default, and the demo's workflow."""
OURS = "the demo's"
PLAN: dict[str, Mapping[str, object]] = {
    "as the nodes have it": {},
    **{f"block {block}": {"feature_block": block} for block in (3, 4, 5, 7)},
    **{f"block 4, t0 {t0}": {"feature_block": 4, "t0": t0} for t0 in (271, 471)},
    OURS: DEMO,
    f"{OURS}, t0 71": {**DEMO, "t0": 71.0},
    f"{OURS}, whole picture": {**DEMO, "background_masking": False},
    f"{OURS}, one noise": {**DEMO, "ensemble": 1},
    f"{OURS}, pass shared": {**DEMO, "guided_pass": "shared"},
}
"""Inputs of the RB-Guidance KSampler where they differ from the node's own."""

PAGE = """# Does the gradient point at the person?

Made by `{command}`; do not edit.

{people} held-out people, {prompts} each that the portrait world draws as a prompt says and the model's autoencoder
encodes, noised to each t and shown to the embedded model with that prompt and the pivot of the person's reference
portrait. r is what the model then gets wrong inside the face; e is how RB-Guidance's gradient, at strength 1, moves
the predicted picture (cfg 1, no gain, no cap).

- **cosine** of r and e inside the face: 0 says that the gradient knows nothing of what is wrong, 1 that it is all of
  it. **Own**: the gradient of the person's own reference portrait. **Own minus other**: that minus the gradient of the
  reference portrait of somebody else with the same noun, through the same mask and pivot: what is the person, not any
  face. **The picture itself**: the very picture that is asked for as the reference, more than any reference can tell.
  Means over several t with 95% intervals, by resampling the people {draws:,} times; **bold** where 0 is outside.
- **error removed at best**: by how much the squared error inside the face falls at the strength that is best for these
  pictures (found for each t, then the mean over t), and **that strength**, as the share of the noise prediction inside
  the face that the guidance then is. Where the gradient points away from what is missing the best strength is none.

{tables}## By timestep

{by_time}
"""


def over_face(plain: Mapping, guided: Mapping, t: int, face: torch.Tensor) -> dict[str, float]:
    """Inside the face, of one picture at one t, in units of the picture: <r, e>, |e|^2, |r|^2, and the square of the
    noise prediction times sigma."""
    error = (plain["truth"] - plain[t])[0, :, face].double()
    effect = (guided[t] - plain[t])[0, :, face].double()
    noise = (plain["noisy", t] - plain[t])[0, :, face].double()
    sums = {"along": error * effect, "effect": effect**2, "error": error**2, "noise": noise**2}
    return {name: float(values.sum()) for name, values in sums.items()}


def predicted(
    model: object, latent: torch.Tensor, positive: list, negative: list, times: Sequence[int], seed: int
) -> dict[object, torch.Tensor]:
    """`truth`: the latent in the model's units, [1, C, h, w]; ("noisy", t): noised; t: what the model makes of that at
    cfg 1."""
    clock = Clock(model.get_model_object("model_sampling"))
    sigmas = torch.tensor([*(clock.sigma(t) for t in times), 0.0])
    found: dict[object, torch.Tensor] = {}

    def ask(model, x, sigmas, extra_args, **_):
        found["truth"] = model.latent_image.clone()
        for t, sigma in zip(times, sigmas[:-1], strict=True):
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed + t)).to(x)
            found["noisy", t] = model.latent_image + sigma * noise
            found[t] = model(found["noisy", t], sigma.expand(len(x)), **extra_args).clone()
        return x

    with torch.inference_mode():
        comfy.sample.sample_custom(
            model, torch.zeros_like(latent), 1.0, comfy.samplers.KSAMPLER(ask), sigmas, positive, negative, latent,
            disable_pbar=True, seed=0,
        )  # fmt: skip
    return found


class Probe:
    """The embedded model, asked at the noised truth."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model, self.clip, self.vae = loaded(options.checkpoint)
        self.encoder = load_handle(str(options.encoder))
        (self.negative,) = node(core.CLIPTextEncode, clip=self.clip, text="")

    def conditionings(self, case: Case) -> dict[str, list]:
        """The prompt with the person's own pivot, and the record of each kind of reference."""
        pictures = {OWN: sitter(case.person), OTHER: sitter(stranger(case.person)), ITSELF: drawn(case)}
        made = {
            kind: conditioned(self.clip, case, face_of([portrait.picture], "whole image"), self.encoder)
            for kind, portrait in pictures.items()
        }
        ((text, own),) = made[OWN]
        return {kind: [[text, {**own, RECORDS_KEY: options[RECORDS_KEY]}]] for kind, ((_, options),) in made.items()}

    def truth(self, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
        """Latent [1, C, h, w] of the person as the prompt says, and where its face is, boolean [h, w]."""
        portrait = drawn(case)
        image = torch.from_numpy(portrait.picture.copy())[None].float() / 255
        (latent,) = node(core.VAEEncode, vae=self.vae, pixels=image)
        face = torch.from_numpy(portrait.labels.copy())[None, None]
        face = torch.isin(face, torch.tensor(FACE_LABELS, dtype=face.dtype)).float()[0]
        return latent["samples"], cover(face, tuple(latent["samples"].shape[-2:]))[0]

    def denoised(
        self, latent: torch.Tensor, positive: list, inputs: Mapping[str, object], seed: int
    ) -> dict[object, torch.Tensor]:
        """As `predicted`, guided by the inputs."""
        guided = patch(self.model, self.vae, settings_of(inputs))
        return predicted(guided, latent, positive, self.negative, TIMES, seed)

    def sums(self, case: Case, plan: Mapping[str, Mapping[str, object]], seed: int) -> dict[str, list]:
        """By setting: the sums with the own reference and with another's, at each t."""
        latent, face = self.truth(case)
        conditionings = self.conditionings(case)
        plain = self.denoised(latent, conditionings[OWN], {**UNSCALED, "strength": 0.0}, seed)
        made: dict[str, list] = {}
        for name, inputs in plan.items():
            for kind, positive in conditionings.items():
                guided = self.denoised(latent, positive, {**UNSCALED, **inputs}, seed)
                made.setdefault(name, []).extend(
                    {"reference": kind, "t": t, **over_face(plain, guided, t, face)} for t in TIMES
                )
        return made


def sources(options: argparse.Namespace) -> str:
    """Of all that every sum depends on; what is planned or written is not among it."""
    files = [of_file(getattr(options, name)) for name in ("checkpoint", "encoder")]
    asking = Probe, predicted, over_face, face_of, conditioned, drawn, sitter, stranger, wanted
    return digest(
        SIZE, TIMES, files, torch.__version__, of_source(*SOURCES, without=DEFAULTS), *map(inspect.getsource, asking)
    )


def asked(campaign: Campaign, plan: Mapping[str, Mapping[str, object]]) -> dict[str, list[dict]]:
    """By setting: a row for each person, reference and t. Only what is not known is asked, and kept at once."""
    file, source = campaign.options.store / "rows.jsonl", sources(campaign.options)
    rows = kept(file, lambda row: ((row["key"], Case(row["person"], row["prompt"])), row["sums"]))
    keys = {name: digest(source, {**UNSCALED, **inputs}) for name, inputs in plan.items()}
    cases, probe = campaign.cases(), None
    for number, case in enumerate(cases, 1):
        todo = {name: plan[name] for name in plan if (keys[name], case) not in rows}
        if not todo or case.person % campaign.parts != campaign.part - 1:
            continue
        probe = probe or Probe(campaign.options)
        for name, sums in probe.sums(case, todo, 1000 * case.person).items():
            rows[keys[name], case] = sums
            keep(file, {"key": keys[name], **asdict(case), "sums": sums})
        print(f"{number}/{len(cases)} person {case.person}, {len(todo)} settings", flush=True)
    return {
        name: [{**asdict(case), **each} for case in cases for each in rows.get((keys[name], case), ())] for name in plan
    }


def cosine(row: Mapping[str, float]) -> float:
    """0 where there was no gradient."""
    return row["along"] / max((row["effect"] * row["error"]) ** 0.5, 1e-30)


Values = dict[tuple[int, int, int], float]
"""By person, prompt and t."""


def values(rows: Sequence[Mapping], times: Sequence[int]) -> tuple[Values, Values, Values]:
    """The cosines of the KINDS: of the own reference; that minus another's, for the same person, prompt and t; of the
    picture itself."""
    found: dict[str, Values] = {OWN: {}, OTHER: {}, ITSELF: {}}
    for row in rows:
        if row["t"] in times:
            found[row["reference"]][row["person"], row["prompt"], row["t"]] = cosine(row)
    own, other, itself = found.values()
    return own, {place: value - other[place] for place, value in own.items()}, itself


def averaged(found: Values) -> Interval | None:
    """Over people."""
    return over_people((person, value) for (person, *_), value in found.items())


def cosines(rows: Sequence[Mapping], times: Sequence[int]) -> tuple[Interval | None, ...]:
    """`values` over people."""
    return tuple(map(averaged, values(rows, times)))


def over(rows: Sequence[Mapping], others: Sequence[Mapping], times: Sequence[int]) -> tuple[Interval | None, ...]:
    """`values` of `rows` minus those of `others`, for the same person, prompt and t."""
    pairs = zip(values(rows, times), values(others, times), strict=True)
    return tuple(averaged({place: value - known[place] for place, value in found.items()}) for found, known in pairs)


def best(rows: Sequence[Mapping], t: int) -> tuple[float, float]:
    """At the one strength that is best for all pictures at t, not below 0: the share of the squared error that it
    takes away, and that strength as the guidance's share of the noise prediction."""
    here = [row for row in rows if row["t"] == t and row["reference"] == OWN]
    along, effect, error, noise = (sum(row[name] for row in here) for name in ("along", "effect", "error", "noise"))
    if along <= 0 or effect <= 0:
        return 0.0, 0.0
    return along**2 / (effect * error), along / effect * (effect / noise) ** 0.5


cosine_text = partial(text_of, difference=True)


def told(times: Sequence[int]) -> str:
    return ", ".join(map(str, times))


def table(results: Mapping[str, Sequence[Mapping]], times: Sequence[int]) -> str:
    """Markdown: a row for each setting, means over t."""
    lines = [["", *(f"cosine, {kind}" for kind in KINDS), "error removed at best, %", "that strength, %"]]
    for name, rows in results.items():
        removed, strength = zip(*(best(rows, t) for t in times), strict=True)
        means = f"{100 * sum(removed) / len(times):.2f}", f"{100 * sum(strength) / len(times):.1f}"
        lines.append([name, *map(cosine_text, cosines(rows, times)), *means])
    return markdown(lines)


def against(results: Mapping[str, Sequence[Mapping]], windows: Sequence[Sequence[int]]) -> str:
    """Markdown: a row for each setting but the demo's, minus that."""
    lines = [["", *(f"t = {told(times)}: {kind}" for times in windows for kind in KINDS)]]
    for name, rows in results.items():
        if name != OURS:
            found = (each for times in windows for each in over(rows, results[OURS], times))
            lines.append([name, *map(cosine_text, found)])
    return markdown(lines)


def page(campaign: Campaign, results: Mapping[str, Sequence[Mapping]]) -> str:
    inside, outside = [t for t in TIMES if t <= WINDOW], [t for t in TIMES if t > WINDOW]
    tables = ""
    for title, times in ((f"At t = {told(inside)}: the paper's window, u = 0.6", inside),
                         (f"At t = {told(outside)}: earlier in sampling", outside)):  # fmt: skip
        tables += f"## {title}\n\n{table(results, times)}\n\n"
    if OURS in results:
        compared = against(results, (inside, outside))
        tables += f"## Cosines minus {OURS}\n\nOn the same people, at the same t.\n\n{compared}\n\n"
    by_time = [["", "", *(f"t = {t}" for t in TIMES)]]
    for name, rows in results.items():
        for kind, found in zip(KINDS, zip(*(cosines(rows, [t]) for t in TIMES), strict=True), strict=True):
            by_time.append([name, kind, *map(cosine_text, found)])
    some = next(iter(results.values()))
    return PAGE.format(
        command=command("direction"), people=len({row["person"] for row in some}),
        prompts="one picture" if campaign.options.prompts == 1 else f"{campaign.options.prompts} pictures",
        draws=DRAWS, tables=tables,
        by_time=markdown(by_time),
    )  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = arguments("direction", identities=20, prompts=1)
    made.set_defaults(store=ROOT / "output" / "directions")
    made.add_argument("--only", nargs="+", default=[], metavar="NAME", help="some of PLAN")
    made.add_argument(
        "--also", type=named, action="append", default=[], metavar='"NAME: INPUT=VALUE ..."', help="one more setting"
    )
    return made


def main(words: list[str]) -> int:
    options = parser().parse_args(words)
    logging.getLogger("omniportrait").setLevel(logging.ERROR)
    plan = {name: inputs for name, inputs in PLAN.items() if not options.only or name in options.only}
    plan |= dict(options.also)
    if options.smoke:
        plan = dict(list(plan.items())[:2])
    campaign = Campaign(options)
    plan = {name: {**dict(options.set), **inputs} for name, inputs in plan.items()}
    results = asked(campaign, plan)
    if campaign.parts == 1:
        campaign.publish(page(campaign, results))
    return 0
