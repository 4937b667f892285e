"""`run.py evaluate --protocol embedded`: the portrait world's people and prompts, judged by the lab's measures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image

from ...demo.main import DEMO_CHECKPOINT, DEMO_ENCODER
from ...demo.sampling import SAMPLING, workflow_inputs
from ...evaluation.cells import Cell
from ...evaluation.columns.column import Shown
from ...evaluation.portrait import Album, Portrait
from ...evaluation.protocol import Person, Prompt, Protocol
from ...training.files import write_whole
from ..world.prompts import HELD_OUT_PROMPTS
from .judge import RIVALS, VIEWS, Judge
from .portraits import SIZE, Case, Made, sitter

SHOWN = (
    Shown("face", "face found, %", 1, 100, 1),
    Shown("margin", "margin", 1, 1, 3, of_face=True),
    Shown("distance", "distance", -1, 1, 3),
    Shown("same", "same person, %", 1, 100, 1),
    Shown("detail", "detail, %", 1, 100, 1),
    Shown("scene", "scene, %", 1, 100, 1),
    Shown("text", "text, %", 1, 100, 1),
)
METHODS = ("plain", "pivot", "reference_attention", "rb_guidance", "all")
FOOT = (
    f"**margin**: how much nearer the face is to other pictures of the person (the mean of {len(VIEWS)}) than to those "
    f"of {RIVALS} others with the same noun. **distance**: to the reference portrait, where there is "
    "a face. **same person**: it is below the [calibrated](measures.md) cut. **detail**: moles kept minus false moles. "
    "**scene**: garment, its colour and background as a classifier sees them; **text** adds expression and subject. "
    "They are the measures of the [ablation](ablation.md).",
    "IC-Portrait has no row: there are no nets of it for this model.",
)


def people(folder: Path, first: int, count: int) -> tuple[Person, ...]:
    """Held-out people, rendered into the folder: the reference portrait, which methods see."""
    found = []
    for number in range(first, first + count):
        portrait, file = sitter(number), folder / f"{number:03d}.png"
        if not file.is_file():
            write_whole(file, lambda out, shown=portrait: Image.fromarray(shown.picture).save(out, "PNG"))
        found.append(Person(f"{number:03d}", file, portrait.record["subject"]))
    return tuple(found)


def protocol() -> Protocol:
    """The held-out prompts, sampled and guided as the demo's workflow is."""
    prompts = (Prompt(f"{i:02d}", each.text("{subject}")) for i, each in enumerate(HELD_OUT_PROMPTS))
    own = workflow_inputs()
    guided = {name: value for name, value in own.items() if name not in (*SAMPLING, "seed", "strength")}
    return Protocol(
        tuple(prompts),
        {name: own[name] for name in SAMPLING} | {"width": SIZE, "height": SIZE},
        {
            "CheckpointLoaderSimple.ckpt_name": DEMO_CHECKPOINT.name,
            "OmniPortraitPivotEncoderLoader.pivot_encoder_name": DEMO_ENCODER.name,
            **{f"OmniPortraitRBGuidanceKSampler.{name}": value for name, value in guided.items()},
        },
        METHODS,
    )


class LabColumns:
    """judge.py's numbers. A portrait is all that it gets: no mask, and no unguided portrait beside it."""

    shown = SHOWN

    def __init__(self) -> None:
        self.judge = Judge()
        self.key = f"lab-2-{self.judge.key}"

    def __call__(self, cell: Cell, portrait: Portrait, album: Album) -> Mapping[str, float | None]:
        made = Made(portrait.pixels, torch.zeros(portrait.pixels.shape[-2:], dtype=torch.bool))
        row = self.judge(Case(int(cell.person.id), int(cell.prompt.id)), made, None, masked=False)
        return {each.key: row[each.key] if row["face"] or not each.of_face else None for each in SHOWN}
