"""IC-Portrait's portraits against their rivals: is it the profile's person, in the style's light, pose and place?

A profile shows one held-out person, a style picture another one of the same noun. Every row sees the same pairs and the
same seeds, and is measured by ic_judge.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image

import nodes as core

from ...evaluation.intervals import over_people, text_of
from ...guidance.ic_portrait.flow import warp
from ...guidance.ic_portrait.settings import Settings
from ...guidance.reference_attention.settings import Settings as Attention
from ...models.faces import FaceReference
from ...models.ic.handle import ICHandle
from ...models.ic.handle import load_handle as load_ic
from ...models.pivot.handle import load_handle as load_pivot
from ...nodes.pivot_conditioning import PivotConditioning
from ...sampling import reference_attention
from ...sampling.ic_passes import paint, repainted, side_of, sized
from ...sampling.ic_run import by_landmarks
from ...training.files import write_whole
from ...training.spf_portrait import lora_file
from .ic_judge import COLUMNS, Measures, Pair, Seen, seen, style_oval
from .kept import keep, kept
from .portraits import SIZE, SOURCES, loaded, node, stranger
from .sources import digest, of_file, of_source

PASSES = (0.7, 0.5, 0.35)
STEPS, CFG, SAMPLER, SCHEDULER = 18, 3.0, "euler_ancestral", "normal"


class AtOneTime(torch.nn.Module):
    """The appearance net told the same timestep at every step: what it adds could then be made once a run, which is
    2.3 plain calls a step instead of 3.1."""

    def __init__(self, net: torch.nn.Module, time: float) -> None:
        super().__init__()
        self.net, self.time, self.residuals = net, time, net.residuals

    def forward(self, condition: torch.Tensor, timesteps: torch.Tensor, *rest: object) -> list[torch.Tensor]:
        return self.net(condition, torch.full_like(timesteps, self.time), *rest)


class Studio:
    """A base model with IC-Portrait's nets and a pivot encoder: the methods that rows name."""

    def __init__(self, checkpoint: Path, nets: Path, encoder: Path | None, lora: Path | None) -> None:
        self.model, self.clip, self.vae = loaded(checkpoint)
        self.nets: ICHandle = load_ic(str(nets))
        self.encoder = load_pivot(str(encoder)) if encoder else None
        self.in_context = lora and lora_file.patched(self.model, lora_file.load(lora)[0])
        files = [of_file(file) for file in (checkpoint, nets, encoder, lora) if file]
        sources = of_source(*SOURCES, "lab/bench/ic_judge.py", "lab/bench/portraits.py", __file__)
        self.key = digest(files, sources, STEPS, CFG, SAMPLER, SCHEDULER, PASSES)

    def prompt(self, pair: Pair, face: FaceReference | None) -> list:
        """ "a photo of a woman", with the face's pivot where one is given."""
        text = f"a photo of a {pair.noun}"
        if face is None:
            return node(core.CLIPTextEncode, clip=self.clip, text=text)[0]
        inputs = dict(text=text, subject=pair.noun, occurrence=1, strength=1.0, pivot_encoder=self.encoder)
        return node(PivotConditioning, clip=self.clip, face_reference=face, **inputs)[0]

    def sampler(self, pair: Pair, face: FaceReference | None) -> dict[str, object]:
        negative = node(core.CLIPTextEncode, clip=self.clip, text="")[0]
        return dict(
            seed=pair.seed, steps=STEPS, cfg=CFG, sampler_name=SAMPLER, scheduler=SCHEDULER,
            positive=self.prompt(pair, face), negative=negative,
        )  # fmt: skip

    def copied(self, picture: torch.Tensor) -> torch.Tensor:
        """Through the autoencoder, as every generated picture has come."""
        return self.vae.decode(self.vae.encode(picture[None].movedim(1, -1)))[0].movedim(-1, 0).clamp(0, 1).cpu()

    def at_one_time(self, time: float) -> ICHandle:
        """The nets, of which the appearance net is always told `time`."""
        net = self.nets.appearance
        told = ModelPatcher(AtOneTime(net.model, time), load_device=net.load_device, offload_device=net.offload_device)
        return replace(self.nets, appearance=told)

    def painted(
        self, pair: Pair, settings: Settings, passes: Sequence[float] = PASSES, pivot: bool = False, model=None,
        nets: ICHandle | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """By IC-Portrait's own sampler."""
        now = seen(pair)
        sampler = self.sampler(pair, now.profile if pivot else None)
        made = paint(
            model or self.model, self.vae, nets or self.nets, now.profile, now.style, settings, passes, sampler,
            side_of(self.nets),
        )  # fmt: skip
        return made.picture[0].movedim(-1, 0).cpu()

    def redrawn(self, pair: Pair, attention: Attention | None, warped: bool = False) -> torch.Tensor:
        """Plain img2img with the pivot, in the same passes; with Reference Attention where its settings are given.
        warped: both see the profile laid upon the style's landmarks."""
        now, model = seen(pair), self.model
        sampler = self.sampler(pair, laid_upon(now) if warped else now.profile)
        if attention is not None:
            model = reference_attention.patch(model, self.vae, attention)
        *_, (_, picture) = repainted(lambda _: model, self.vae, now.style, PASSES, sampler, side_of(self.nets))
        return picture[0].movedim(-1, 0).cpu()


def laid_upon(now: Seen) -> FaceReference:
    """The profile where the style's landmarks have it."""
    side = now.style.crop.shape[1]
    laid = warp(sized(now.profile.crop, side), by_landmarks(now.profile, now.style, (side, side)))
    return replace(now.style, crop=laid.movedim(1, -1).clamp(0, 1), embeddings={})


def pasted(now: Seen) -> torch.Tensor:
    """The profile's face upon the style's: no network."""
    laid, style = (sized(face.crop, SIZE)[0] for face in (laid_upon(now), now.style))
    return style + style_oval(now.style) * (laid - style)


NETS = Settings()
NO_NETS = replace(NETS, strength=1e-9)
"""The wide call, whose nets add nothing."""
ROWS: dict[str, Callable[[Studio, Pair], torch.Tensor]] = {
    "the perfect picture, copied": lambda studio, pair: studio.copied(seen(pair).target),
    "the style picture, copied": lambda studio, pair: studio.copied(sized(seen(pair).style.crop, SIZE)[0]),
    "paste by landmarks, copied": lambda studio, pair: studio.copied(pasted(seen(pair))),
    "img2img, pivot": lambda studio, pair: studio.redrawn(pair, None),
    "img2img, pivot and Reference Attention": lambda studio, pair: studio.redrawn(pair, Attention()),
    "the same, its keys warped": lambda studio, pair: studio.redrawn(pair, Attention(), warped=True),
    "wide call, no nets": lambda studio, pair: studio.painted(pair, NO_NETS),
    "in-context LoRA": lambda studio, pair: studio.painted(pair, NO_NETS, model=studio.in_context),
    "IC-Portrait": lambda studio, pair: studio.painted(pair, NETS),
    "IC-Portrait and the pivot": lambda studio, pair: studio.painted(pair, NETS, pivot=True),
    "flow of the matching net": lambda studio, pair: studio.painted(pair, replace(NETS, flow="shared")),
    "flow of each level, the paper's": lambda studio, pair: studio.painted(pair, replace(NETS, flow="layer")),
    "not warped": lambda studio, pair: studio.painted(pair, replace(NETS, flow="none")),
    "not annealed": lambda studio, pair: studio.painted(pair, replace(NETS, alpha=0.0, beta=1.0)),
    "one pass": lambda studio, pair: studio.painted(pair, NETS, PASSES[:1]),
    "nets told t = 100 alone": lambda studio, pair: studio.painted(pair, NETS, nets=studio.at_one_time(100.0)),
    "nets told t = 500 alone": lambda studio, pair: studio.painted(pair, NETS, nets=studio.at_one_time(500.0)),
    "r = 0": lambda studio, pair: studio.painted(pair, replace(NETS, light=0.0)),
    "r = 5%": lambda studio, pair: studio.painted(pair, replace(NETS, light=0.05)),
    "r = 20%": lambda studio, pair: studio.painted(pair, replace(NETS, light=0.2)),
    "r = 40%": lambda studio, pair: studio.painted(pair, replace(NETS, light=0.4)),
}
PLAIN = "img2img, pivot"


def rows_for(studio: Studio) -> list[str]:
    """All rows but those whose files are not given."""
    lacking = {"in-context LoRA"} if studio.in_context is None else set()
    matching = studio.nets.matching
    if matching is None:
        lacking |= {name for name in ROWS if name.startswith("flow of")}
    elif matching.middle_block is None:
        lacking |= {"flow of each level, the paper's"}
    return [name for name in ROWS if name not in lacking]


class Bench:
    """Pictures and numbers are kept in `store`: the same command goes on."""

    def __init__(self, studio: Studio, store: Path, people: int) -> None:
        self.studio, self.store, self.measures = studio, store, Measures()
        self.pairs = [Pair(person, stranger(person)) for person in range(people)]

    def picture(self, name: str, pair: Pair) -> torch.Tensor:
        file = self.store / self.studio.key / name.replace(" ", "_") / f"{pair.person:03d}.png"
        if not file.is_file():
            with torch.inference_mode():
                made = ROWS[name](self.studio, pair)
            image = Image.fromarray((made.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy())
            write_whole(file, lambda out: image.save(out, "PNG"))
        return torch.from_numpy(np.asarray(Image.open(file).convert("RGB")).copy()).movedim(-1, 0).float() / 255

    def rows(self, names: Iterable[str]) -> dict[str, list[dict]]:
        """Each row's numbers, one a pair; measured now, or read."""
        found = {}
        for name in names:
            file = self.store / self.studio.key / f"{self.measures.key}-{name.replace(' ', '_')}.jsonl"
            known = kept(file, lambda row: (row["who"], row))
            for pair in self.pairs:
                if pair.person not in known:
                    known[pair.person] = self.measures(pair, self.picture(name, pair)) | {"who": pair.person}
                    keep(file, known[pair.person])
            found[name] = [known[pair.person] for pair in self.pairs]
            print(f"{name}: {json.dumps(brief(found[name]))}", flush=True)
        return found

    def sheet(self, names: Sequence[str], people: int = 8) -> Image.Image:
        """Profile, style, the perfect picture, then a column a row of `names`."""
        lines = []
        for pair in self.pairs[:people]:
            now = seen(pair)
            shown = [sized(now.profile.crop, SIZE)[0], sized(now.style.crop, SIZE)[0], now.target]
            lines.append(torch.cat([*shown, *(self.picture(name, pair) for name in names)], -1))
        tiles = (torch.cat(lines, 1).clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
        return Image.fromarray(tiles)


def brief(rows: Sequence[Mapping]) -> dict[str, float]:
    """The mean of each column, for the screen."""
    return {
        key: round(float(np.mean(values)), 3)
        for key in COLUMNS
        if (values := [row[key] for row in rows if row[key] is not None])
    }


def table(found: Mapping[str, Sequence[Mapping]]) -> str:
    """Rows of methods; means over people with 95% intervals. The first column also has min, median and max, as the
    paper's Table 1."""
    lines = ["| | min / median / max | " + " | ".join(title for title, *_ in COLUMNS.values()) + " |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for name, rows in found.items():
        all_of_them = [value for row in rows for value in row["each"]]
        spread = "–"
        if all_of_them:
            spread = " / ".join(f"{value:.2f}" for value in (min(all_of_them), median(all_of_them), max(all_of_them)))
        cells = [spread]
        for key, (_, factor, digits) in COLUMNS.items():
            value = over_people((row["who"], row[key]) for row in rows if row[key] is not None)
            cells.append(text_of(value, factor, digits))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(found: Mapping[str, Sequence[Mapping]], baseline: str) -> str:
    """What each row has more than `baseline`, on the same pairs."""
    known = {row["who"]: row for row in found[baseline]}
    lines = [f"| over {baseline} | " + " | ".join(title for title, *_ in COLUMNS.values()) + " |"]
    lines.append("|---" * (len(COLUMNS) + 1) + "|")
    for name, rows in found.items():
        if name == baseline:
            continue
        cells = []
        for key, (_, factor, digits) in COLUMNS.items():
            both = [(r["who"], r[key] - known[r["who"]][key]) for r in rows
                    if r[key] is not None and known[r["who"]][key] is not None]  # fmt: skip
            cells.append(text_of(over_people(both), factor, digits, difference=True))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
