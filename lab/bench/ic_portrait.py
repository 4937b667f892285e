"""What IC-Portrait's nets know: `python run.py bench ic-portrait --checkpoint FILE [--nets FILE]`.

Tables on held-out people of the portrait world. Two cost minutes, and come before any portrait is sampled. The
first: how far a flow leads from the exact place, by way of finding it. The second: how much of the profile the model
uses. It denoises the same noisy picture beside its own person's profile, and beside somebody else's of the same noun:
a model that does not look at the profile errs alike. With `--portraits N` it then paints N pairs by each method of
`ic_portraits.py`, which takes hours, and goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ...backbone.attention import private_options
from ...demo.main import DEMO_ENCODER
from ...evaluation.intervals import over_people, text_of
from ...guidance.ic_portrait import flow as matching
from ...guidance.ic_portrait import objective
from ...guidance.ic_portrait.aggregate import aggregated
from ...guidance.ic_portrait.masking import halves, joined, kept
from ...guidance.ic_portrait.settings import Settings
from ...models.faces.embedder import find_landmarks
from ...models.faces.geometry import similarity
from ...models.ic.file import load
from ...models.ic.nets import ICNets
from ...sampling.ic_run import MATCHED_AT
from ...training.base import Base, load_base
from ...training.files import write_whole
from ...training.ic_portrait import config as settings
from ...training.ic_portrait.step import matched_levels, predict, subject_text
from ...training.loop import seeded
from ...training.spf_portrait import lora_file
from ..world.flow import Flow, exact_flow, exact_flow_between
from ..world.identity import Identity, identity
from ..world.portrait import Portrait, render
from ..world.shade import FACE_LABELS
from ..world.shards import HELD_OUT, view_of
from ..world.view import View
from .sources import ROOT

SIZE, CELL = 256, 8
LIGHT = 0.1
LOOKS = (400, 700)
"""Timesteps: where the picture shows who it is, and where it does not."""
DIFT_AT = 50
"""The timestep at which the base's own features are read; DIFT's own choice is later, which matched worse here."""
SHARE = 0.05
"""A match within so many sides of the face is right."""


@dataclass(frozen=True, eq=False)
class Shot:
    """One picture of one person."""

    person: Identity
    view: View
    portrait: Portrait

    @property
    def pixels(self) -> torch.Tensor:
        """[3, S, S] uint8."""
        return torch.from_numpy(self.portrait.picture.copy()).movedim(-1, 0)

    @property
    def landmarks(self) -> torch.Tensor:
        """[5, 2] in shares of the picture."""
        return torch.tensor(self.portrait.record["landmarks"]) / SIZE


@lru_cache(maxsize=256)
def shot(person: int, view: int, framing: str) -> Shot:
    """A view of the held-out person, as the shards have it."""
    who = identity(HELD_OUT + person)
    seen = view_of(0, who.number, view, framing)
    return Shot(who, seen, render(who, seen, SIZE))


def other(person: int, framing: str) -> int:
    """The next held-out person with the same noun."""
    noun = shot(person, 0, framing).person.subject
    return next(each for each in range(person + 1, person + 99) if shot(each, 0, framing).person.subject == noun)


# The flow


def way(lit: Shot, profile: Shot) -> Flow:
    """The exact one; of one person inside the face alone, as of two."""
    if lit.person.number != profile.person.number:
        return exact_flow_between(
            (lit.person, lit.view), (profile.person, profile.view), (lit.portrait, profile.portrait)
        )
    flow = exact_flow(lit.person, lit.view, profile.view, SIZE)
    return Flow(flow.places, flow.visible & np.isin(lit.portrait.labels, FACE_LABELS))


def error(flow: torch.Tensor, lit: Shot, profile: Shot) -> tuple[float, float]:
    """Mean distance in latent cells, and the share within SHARE, over the face's cells that are seen in both."""
    exact, cells = way(lit, profile), SIZE // CELL
    middle = slice(CELL // 2, None, CELL)
    places = torch.from_numpy(exact.places[middle, middle].copy()) / SIZE
    known = torch.from_numpy(exact.visible[middle, middle].copy())
    away = (matching.resized(flow, (cells, cells))[0] - places).norm(dim=-1)[known] * cells
    x0, y0, x1, y1 = lit.portrait.record["face_box"]
    return float(away.mean()), float((away < SHARE * max(x1 - x0, y1 - y0) / CELL).float().mean())


def flows(lit: Shot, profile: Shot, base: Base, nets: ICNets | None, finest: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Each way of finding it."""
    cells = (SIZE // CELL,) * 2
    yield "identity flow", matching.own_places(*cells)[None]
    near = matching.affine(similarity(lit.landmarks[None], profile.landmarks[None]), cells)
    yield "five landmarks, exact", near
    found = [find_landmarks(each.pixels.float() / 255) for each in (lit, profile)]
    if all(each is not None for each in found):
        near = matching.affine(similarity(*(each[None] / SIZE for each in found)), cells)
        yield "five landmarks, found", near
    for block, features in base_features(lit, profile, base):
        size = tuple(features.shape[-2:])
        cost = matching.cost_volume(features[1:], features[:1])
        yield f"the base's own features (DIFT), block {block}, all pixels", matching.match(cost, size)
    if nets is None or nets.matching is None:
        return
    condition, rows = condition_of(lit, profile, base), subject_text(base, lit.person.subject)[None]
    with torch.no_grad():
        features = nets.matching(condition, torch.full((1,), MATCHED_AT), rows, private_options({}))
    for level in matched_levels(features, finest):
        left, right = halves(features[level])
        size = tuple(right.shape[-2:])
        cost = matching.cost_volume(left, right)
        yield f"matching net, level {level}", matching.match(cost, size)
        yield (
            f"matching net, level {level}, near the landmarks",
            matching.match(cost, size, matching.resized(near, size)),
        )


def base_features(lit: Shot, profile: Shot, base: Base) -> Iterator[tuple[int, torch.Tensor]]:
    """[2, C, h, w] of both whole pictures by the frozen UNet alone: of its feature block and the three after."""
    latents = base.latents(torch.stack([lit.pixels, profile.pixels]))
    noise = torch.randn(latents.shape, generator=seeded(0, lit.person.number, "dift"))
    rows = torch.stack([subject_text(base, each.person.subject) for each in (lit, profile)])
    x, sigma = base.noised(latents, noise, torch.full((2,), DIFT_AT))
    arguments, first = base.arguments(x, rows), base.family.feature_block()
    for block in range(first, min(first + 4, base.family.last_block + 1)):
        with torch.no_grad():
            yield block, base.unet().tap(block, x, sigma, arguments, private_options({})).features


def condition_of(lit: Shot, profile: Shot, base: Base) -> torch.Tensor:
    """c_f [1, 4, h, 2 w]."""
    masked = kept(lit.pixels, LIGHT, seeded(0, lit.person.number, "light"))
    return joined(*base.latents(torch.stack([profile.pixels, masked])).split(1))


# The profile's use


def face_error(lit: Shot, profile: Shot, base: Base, residuals: Callable, time: int) -> float:
    """Squared error of the predicted picture inside the lit face."""
    latents = joined(*base.latents(torch.stack([profile.pixels, lit.pixels])).split(1))
    noise = torch.randn(latents.shape, generator=seeded(0, lit.person.number, time, "noise"))
    times, rows = torch.tensor([time]), subject_text(base, lit.person.subject)[None]
    face = torch.from_numpy(np.isin(lit.portrait.labels, FACE_LABELS)).float()
    face = F.avg_pool2d(face[None], CELL)
    with torch.no_grad():
        added = residuals(condition_of(lit, profile, base), times.float(), rows, lit, profile)
        predicted = predict(base, latents, noise, times, rows, added)
    _, right = objective.both_halves(predicted, noise, face)
    return float(right * base.sigma(times).square())


def by_nets(nets: ICNets, warped: bool) -> Callable:
    """Residuals of the appearance net. warped: by the landmarks."""
    method = Settings()

    def residuals(condition, times, rows, lit: Shot, profile: Shot) -> list[torch.Tensor]:
        features = nets.appearance(condition, times, rows, private_options({}))
        flow = matching.affine(similarity(lit.landmarks[None], profile.landmarks[None]), (SIZE // CELL,) * 2)
        each = [flow if warped else None] * len(features)
        return nets.appearance.residuals(aggregated(features, each, method.alpha, method.beta))

    return residuals


# The page


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="run.py bench ic-portrait", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--checkpoint", required=True, help="the embedded model, or another of the portrait world")
    parser.add_argument("--nets", type=Path, help="what train ic-portrait wrote")
    parser.add_argument("--people", type=int, default=24, help="held-out people (default: 24)")
    parser.add_argument("--framing", default="close", help="how near the camera is (default: close)")
    parser.add_argument("--portraits", type=int, default=0, metavar="N", help="also paint so many pairs by each method")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="some of the methods (default: all)")
    parser.add_argument("--encoder", type=Path, default=DEMO_ENCODER, help="the pivot's (default: the demo's)")
    parser.add_argument("--lora", type=Path, help="what make in-context-lora wrote: a rival")
    parser.add_argument("--store", type=Path, default=ROOT / "output" / "ic-portrait", help="what is kept of portraits")
    parser.add_argument("--out", type=Path, help="a Markdown file to write the tables to; a sheet goes beside it")
    options = parser.parse_args(words)
    config = settings.read("demo", {"checkpoint": options.checkpoint, "precision": "fp32"})
    base = load_base(config)
    rivals = {"wide, no nets": base}
    if options.lora:
        tuned = load_base(config)
        tuned.model = lora_file.patched(tuned.model, lora_file.load(options.lora)[0])
        rivals["wide, in-context LoRA"] = tuned
    nets, header = load(options.nets, torch.float32) if options.nets else (None, None)
    level = header.match_level if header else 0
    parts = [flow_table(base, nets, level, options), use_table(rivals, base, nets, options)]
    if options.portraits:
        parts += portrait_tables(options)
    text = "\n\n".join(parts)
    print(text)
    if options.out:
        write_whole(options.out, f"{text}\n".encode())


def portrait_tables(options: argparse.Namespace) -> list[str]:
    """What each method paints, and what it has more than plain img2img."""
    from . import ic_portraits as portraits

    if options.nets is None:
        raise SystemExit("--portraits needs --nets FILE, what train ic-portrait wrote.")
    studio = portraits.Studio(Path(options.checkpoint), options.nets, options.encoder, options.lora)
    names = options.rows or portraits.rows_for(studio)
    unknown = sorted(set(names) - set(portraits.ROWS))
    if unknown:
        raise SystemExit(f"There is no row {unknown[0]!r}; choose some of {', '.join(portraits.ROWS)}.")
    bench = portraits.Bench(studio, options.store, options.portraits)
    found = bench.rows(names)
    if options.out:
        sheet = bench.sheet(names)
        write_whole(options.out.with_suffix(".jpg"), lambda file: sheet.save(file, "JPEG", quality=85))
    tables = [portraits.table(found)]
    return tables + [portraits.differences(found, portraits.PLAIN)] * (portraits.PLAIN in found)


def flow_table(base: Base, nets: ICNets | None, finest: int, options: argparse.Namespace) -> str:
    """Rows of ways; columns of one person and of two."""
    found: dict[str, dict[str, list]] = {}
    for person in range(options.people):
        lit, stranger = shot(person, 1, options.framing), other(person, options.framing)
        pairs = {"one person": shot(person, 0, options.framing), "two people": shot(stranger, 0, options.framing)}
        for kind, profile in pairs.items():
            for name, flow in flows(lit, profile, base, nets, finest):
                found.setdefault(name, {}).setdefault(kind, []).append((person, *error(flow, lit, profile)))
    lines = ["| flow | one person: cells | right | two people: cells | right |", "|---|---|---|---|---|"]
    for name, kinds in found.items():
        cells = [text_of(over_people((who, value[i]) for who, *value in rows), 1 if i == 0 else 100, 2 if i == 0 else 0)
                 for rows in kinds.values() for i in (0, 1)]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def use_table(rivals: Mapping[str, Base], base: Base, nets: ICNets | None, options: argparse.Namespace) -> str:
    """Rows of nets; the error beside the own profile, and how much larger it is beside another's. rivals: models that
    need no nets."""
    rows: list[tuple[str, Base, Callable]] = [(name, model, lambda *_: None) for name, model in rivals.items()]
    if nets is not None:
        rows.append(("nets, not warped", base, by_nets(nets, False)))
        rows.append(("nets, warped by landmarks", base, by_nets(nets, True)))
    head = " | ".join(f"t = {time}: own | another's, more" for time in LOOKS)
    lines = [f"| | {head} |", "|---" * (1 + 2 * len(LOOKS)) + "|"]
    for name, model, residuals in rows:
        cells = []
        for time in LOOKS:
            own, more = swapped(model, residuals, time, options)
            cells += [text_of(own, digits=4), text_of(more, digits=4, difference=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def swapped(base: Base, residuals: Callable, time: int, options: argparse.Namespace) -> Sequence:
    """Intervals over people of the error beside the own profile, and of what another's adds to it."""
    own, more = [], []
    for person in range(options.people):
        lit = shot(person, 1, options.framing)
        strange = shot(other(person, options.framing), 0, options.framing)
        right, wrong = (face_error(lit, each, base, residuals, time)
                        for each in (shot(person, 0, options.framing), strange))  # fmt: skip
        own.append((person, right))
        more.append((person, wrong - right))
    return over_people(own), over_people(more)
