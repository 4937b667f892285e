"""How much of the attention a person's word has where the person is in the picture, and where nobody is.

    python run.py bench presence                # 5 held-out people
    python run.py bench presence --people 2     # a quick look

Eq. 6 normalises its map, so that it finds a face in any picture. What `presence` asks for is measured before that.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import nodes as core

from ...backbone.clock import Clock
from ...guidance.omniportrait.mask import prominence
from ...guidance.omniportrait.settings import PRESENCE, PRESENCE_FROM, Settings
from ...models.pivot.handle import load_handle
from ...sampling.record import RECORDS_KEY, IdentityRecord, records_of
from ...sampling.single_call import search_faces
from ..world.backgrounds import background
from ..world.prompts import HELD_OUT_PROMPTS
from ..world.shade import FACE_LABELS, LABELS
from .campaign import markdown
from .portraits import SIZE, Case, conditioned, drawn, face_of, loaded, node, sitter
from .sources import ROOT

TIMES = (900, 600, 300, 50)
T0 = Settings().t0
SHOWN = {
    "the person": True,
    "the person's face, twice as large": True,
    "the place without the person": False,
    "one colour": False,
    "the clothes, four times as large": False,
}
"""What the pictures show, and whether the person is in them."""
PAGE = """# Is the person in the picture at all?

Made by `python run.py bench presence`; do not edit.

{people} held-out people, each with a prompt of the portrait world and the pivot of their own reference portrait, on the
embedded model. Pictures that were drawn, not generated, went through the autoencoder, were noised to t and shown to the
model. The numbers are the prominence of the person's word (`prominence` of `guidance/omniportrait/mask.py`) against its
height on the reference portrait at t = {t0:.0f}. Least, median and greatest over the people.

{table}

**Below {presence:g} from t = {start:.0f} on nobody is guided** (`presence`). Of the pictures at t = 600, 300 and 50 are
then guided:

{passes}

What is still taken for the person is skin, hair and clothes, which belong to one, and at much noise some places.
"""


def shown(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    """A person's pictures, [S, S, 3] of bytes, by what they show."""
    portrait = drawn(case)
    picture, random = portrait.picture, np.random.default_rng(case.person)
    rows, columns = np.nonzero(np.isin(portrait.labels, FACE_LABELS))
    yield "the person", picture
    yield "the person's face, twice as large", part(picture, rows.mean(), columns.mean(), 2)
    place = background(HELD_OUT_PROMPTS[case.prompt].background, random, SIZE)
    yield "the place without the person", (place * 255).round().astype(np.uint8)
    yield "one colour", np.broadcast_to(random.integers(0, 256, 3, np.uint8), picture.shape).copy()
    rows, columns = np.nonzero(portrait.labels == LABELS.index("clothes"))
    yield "the clothes, four times as large", part(picture, rows.max(), np.median(columns), 4)


def part(picture: np.ndarray, y: float, x: float, times: int) -> np.ndarray:
    """The square around a place, enlarged to the picture's size."""
    side = SIZE // times
    top, left = (int(np.clip(at - side / 2, 0, SIZE - side)) for at in (y, x))
    cut = Image.fromarray(picture[top : top + side, left : left + side])
    return np.asarray(cut.resize((SIZE, SIZE), Image.BICUBIC))


class Observer:
    """The embedded model, asked where it looks for a person's word."""

    def __init__(self, weights: Path) -> None:
        self.model, self.clip, self.vae = loaded(weights / "omniportrait_demo.safetensors")
        self.encoder = load_handle(str(weights / "omniportrait_demo_pivot.safetensors"))
        self._clock = Clock(self.model.get_model_object("model_sampling"))

    def conditioning(self, case: Case) -> list:
        return conditioned(self.clip, case, face_of([sitter(case.person).picture]), self.encoder)

    def spread(self, conditioning: list, picture: np.ndarray, t: float) -> torch.Tensor:
        """A_s . A_c of the person's word, [1, h, w]."""
        pixels = torch.from_numpy(np.ascontiguousarray(picture))[None].float() / 255
        (latent,) = node(core.VAEEncode, vae=self.vae, pixels=pixels)
        with torch.inference_mode():
            sigma = self._clock.sigma(t)
            search = search_faces(self.model, conditioning, latent["samples"], 1, sigma, Settings())
        return search.spread[0]

    def reference(self, conditioning: list) -> float:
        """Its height on the reference portrait's own crop, as guidance reads it, with one noise."""
        (record,) = records_of(conditioning[0][1])
        crop = (record.face.crop[0].numpy() * 255).round().astype(np.uint8)
        return float(
            self.spread(of_reference(record), np.asarray(Image.fromarray(crop).resize((SIZE, SIZE))), T0).max()
        )


def of_reference(record: IdentityRecord) -> list:
    """The reference prompt, in which the record's word is marked."""
    marked = replace(record, token_index=record.reference_token_index)
    return [[states, {**options, RECORDS_KEY: (marked,)}] for states, options in record.reference_conditioning]


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="run.py bench presence", description=__doc__, allow_abbrev=False)
    parser.add_argument("--people", type=int, default=5)
    options = parser.parse_args(words)
    observer = Observer(ROOT / "demo" / "weights")
    found: dict[tuple[str, int], list[float]] = {}
    for person in range(options.people):
        case = Case(person, 7 * person % len(HELD_OUT_PROMPTS))
        conditioning = observer.conditioning(case)
        reference = observer.reference(conditioning)
        for name, picture in shown(case):
            ratios = [float(prominence(observer.spread(conditioning, picture, t))) / reference for t in TIMES]
            print(f"person {person}  {name:34s}", *(f"t {t} {r:.2f} " for t, r in zip(TIMES, ratios, strict=True)))
            for t, ratio in zip(TIMES, ratios, strict=True):
                found.setdefault((name, t), []).append(ratio)
    page = told(found, options.people)
    if options.people == parser.get_default("people"):
        (ROOT / "docs" / "results" / "presence.md").write_text(page, encoding="utf-8")
    print(page)
    return 0


def told(found: dict[tuple[str, int], list[float]], people: int) -> str:
    """The page."""
    head = ["The picture shows", *(f"t = {t}" for t in TIMES)]
    cells = {key: f"{min(r):.2f}, {np.median(r):.2f}, {max(r):.2f}" for key, r in found.items()}
    table = markdown([head, *([name, *(cells[name, t] for t in TIMES)] for name in SHOWN)])
    passes = []
    for name, there in SHOWN.items():
        asked = [
            ratio >= PRESENCE for (each, t), r in found.items() if each == name and t <= PRESENCE_FROM for ratio in r
        ]
        passes.append([name, "yes" if there else "no", f"{sum(asked)} of {len(asked)}"])
    return PAGE.format(
        people=people, t0=T0, table=table, presence=PRESENCE, start=PRESENCE_FROM,
        passes=markdown([["The picture shows", "the person is there", "guided"], *passes]),
    )  # fmt: skip
