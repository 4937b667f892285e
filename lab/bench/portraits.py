"""Portraits of held-out people as the pack's own nodes make them, on ComfyUI, in this process.

Face Reference, Pivot Conditioning, Reference Attention where a variant has it, then what the RB-Guidance KSampler does,
VAE Decode, with everything but the variant held equal: the same person, prompt and seed. A picture that was made once
is read from its file.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import comfy.model_management
import comfy.sd
import comfy.utils
import numpy as np
import torch
from comfyui_version import __version__
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import nodes as core

from ...backbone.family import family_of
from ...demo.architecture import register
from ...demo.sampling import SAMPLING, workflow_inputs
from ...guidance.omniportrait.settings import Settings
from ...guidance.reference_attention.settings import Settings as AttentionSettings
from ...models.faces.build import FaceOptions, make_reference
from ...models.faces.reference import FaceReference
from ...models.pivot.handle import load_handle
from ...nodes.guidance_inputs import settings_from
from ...nodes.pivot_conditioning import PivotConditioning
from ...nodes.rb_guidance_ksampler import RBGuidanceKSampler
from ...sampling import reference as features
from ...sampling import reference_attention, reference_tokens
from ...sampling.patch import patch
from ...sampling.trace import Trace
from ...training.files import write_whole
from ..world.identity import identity
from ..world.portrait import Portrait, render
from ..world.prompts import HELD_OUT_PROMPTS, Prompt
from ..world.shards import HELD_OUT, view_of
from ..world.view import random_view
from .oracle import Oracle
from .sources import digest, of_file, of_source

SIZE = 256
"""Side of the portraits; what the embedded model was trained on."""
DECODER = ("demo/autoencoder.py", "demo/architecture.py")
SOURCES = ("guidance", "backbone", "sampling", "models", "nodes/face_reference.py", "nodes/pivot_conditioning.py",
           "lab/world", *DECODER)  # fmt: skip
"""Code that a picture depends on."""
DEFAULTS = (Path(inspect.getfile(Settings)), Path(inspect.getfile(AttentionSettings)))
"""Not counted as such: all values are given, and a new default must not void the pictures that it follows from."""
OWN = ("model", "vae", "seed", "positive", "negative", "latent_image", "denoise")
"""The sampler's inputs that no variant may set."""
ATTENTION_INPUTS = {f"attention_{field.name}": field.default for field in fields(AttentionSettings)}
"""Reference Attention's settings by the names that a variant calls them, as the node has them. Portraits are made
without it unless their variant gives `attention_strength`."""


@dataclass(frozen=True)
class Case:
    """Which held-out person, and which of HELD_OUT_PROMPTS."""

    person: int
    prompt: int

    @property
    def seed(self) -> int:
        """Of the noise: the same for all variants."""
        return 1000 * self.person + self.prompt


@dataclass(frozen=True)
class Variant:
    """A way to make a portrait. encoder: a pivot encoder's file, or None for the plain word. words: the state of `make
    words` whose word for the person takes a pivot's place. inputs: those of the
    RB-Guidance KSampler, and those of ATTENTION_INPUTS, that differ from the studio's. source: `drawn` is not
    generated, but drawn by the portrait world; `copied` is that, encoded and decoded by the base model's autoencoder;
    `stranger` is a copy of somebody else with the same noun."""

    name: str
    encoder: Path | None = None
    inputs: Mapping[str, object] = field(default_factory=dict)
    source: Literal["generated", "drawn", "copied", "stranger"] = "generated"
    words: Path | None = None

    @property
    def unguided(self) -> Variant:
        """The same without RB-Guidance."""
        kept = {name: value for name, value in self.inputs.items() if name in SAMPLING or name in ATTENTION_INPUTS}
        return replace(self, name=f"{self.name}, unguided", inputs={**kept, "strength": 0.0})

    @property
    def plain(self) -> Variant:
        """The same without RB-Guidance and Reference Attention."""
        kept = {name: value for name, value in self.inputs.items() if name in SAMPLING}
        return replace(self, name=f"{self.name}, plain", inputs={**kept, "strength": 0.0, "attention_strength": 0.0})

    @property
    def off(self) -> Variant:
        """What the variant is compared with: the same without RB-Guidance or, where it has none, without Reference
        Attention."""
        return self.unguided if self.inputs.get("strength", 1.0) else self.plain


@dataclass(frozen=True, eq=False)
class Made:
    """picture: [3, S, S] in 0..1. mask: M_gen of the last guided step, boolean [S, S]. guided: the share of calls that
    were guided of those in the window; amount: the guidance's mean share of their noise prediction. None where no
    guidance was asked for."""

    picture: torch.Tensor
    mask: torch.Tensor
    guided: float | None = None
    amount: float | None = None

    def save(self, file: Path) -> None:
        """One PNG with the mask as its alpha; nobody ever reads half a file."""
        channels = torch.cat([self.picture, self.mask[None].float()]).movedim(0, -1)
        note = PngInfo()
        note.add_text("trace", json.dumps([self.guided, self.amount]))
        picture = Image.fromarray((channels * 255).round().byte().numpy())
        write_whole(file, lambda out: picture.save(out, "PNG", pnginfo=note))

    @classmethod
    def load(cls, file: Path) -> Made:
        with Image.open(file) as image:
            channels = torch.from_numpy(np.array(image)).movedim(-1, 0).float() / 255
            return cls(channels[:3], channels[3] > 0.5, *json.loads(image.text["trace"]))


@lru_cache(maxsize=64)
def sitter(person: int, view: int = 0) -> Portrait:
    """A view of the held-out person, as the shards have it; 0 is the reference portrait."""
    number = HELD_OUT + person
    return render(identity(number), view_of(0, number, view), SIZE)


def stranger(person: int) -> int:
    """The next held-out person with the same noun."""
    noun = sitter(person).record["subject"]
    return next(other for other in range(person + 1, person + 99) if sitter(other).record["subject"] == noun)


def drawn(case: Case) -> Portrait:
    """The person as the prompt says, drawn by the portrait world: what a perfect model might make."""
    number, prompt = HELD_OUT + case.person, HELD_OUT_PROMPTS[case.prompt]
    view = random_view(np.random.default_rng((0, number, 1000 + case.prompt)))
    words = {name: getattr(prompt, name) for name in ("expression", "colour", "garment", "background")}
    return render(identity(number), replace(view, **words), SIZE)


def wanted(case: Case) -> tuple[Prompt, str]:
    """The prompt, and the subject's word."""
    return HELD_OUT_PROMPTS[case.prompt], sitter(case.person).record["subject"]


def node(kind: type, **inputs: object) -> tuple:
    """A node's outputs, run as ComfyUI runs it."""
    with torch.inference_mode():
        if hasattr(kind, "define_schema"):
            return tuple(kind.execute(**inputs).result)
        return tuple(getattr(kind(), kind.FUNCTION)(**inputs))


def loaded(checkpoint: Path) -> tuple:
    """model, clip, vae"""
    register()
    comfy.utils.PROGRESS_BAR_ENABLED = False
    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]


def face_of(pictures: Sequence[np.ndarray], no_face: str = "stop", **options: object) -> FaceReference:
    """Of one person's pictures, [S, S, 3] of bytes. options: more of Face Reference's."""
    asked = FaceOptions(no_face=no_face, mask_source="landmarks", detector="built-in", **options)
    return make_reference(torch.from_numpy(np.stack(pictures)).float() / 255, None, asked).reference


def conditioned(clip, case: Case, face: FaceReference, encoder: object | None, **inputs: object) -> list:
    """The case's prompt with a face. inputs: more of Pivot Conditioning's."""
    prompt, subject = wanted(case)
    (positive,) = node(
        PivotConditioning, clip=clip, face_reference=face, text=prompt.text(subject), subject=subject, occurrence=1,
        strength=1.0, pivot_encoder=encoder, **inputs,
    )  # fmt: skip
    return positive


def defaults() -> dict[str, object]:
    """The RB-Guidance KSampler's own values of all inputs that a variant may set, and those of the settings that are
    not inputs yet: a benchmark decides which become some. Of ATTENTION_INPUTS all values, and the strength is 0."""
    inputs = {i.id: i.default for i in RBGuidanceKSampler.define_schema().inputs if i.id not in OWN}
    settings = {field.name: field.default for field in fields(Settings) if field.name != "block"}
    return settings | inputs | ATTENTION_INPUTS | {"attention_strength": 0.0}


def demo_inputs() -> dict[str, object]:
    """`defaults`, but as the demo's workflow has them."""
    known = defaults()
    return known | {name: value for name, value in workflow_inputs().items() if name in known}


def settings_of(values: Mapping[str, object]) -> Settings:
    """What the sampler's inputs say of the guidance."""
    own = {field.name: values[field.name] for field in fields(Settings) if field.name in values}
    return settings_from(values["mode"], values["feature_block"], **own)


def attention_of(values: Mapping[str, object]) -> AttentionSettings:
    """What they say of Reference Attention."""
    return AttentionSettings(**{field.name: values[f"attention_{field.name}"] for field in fields(AttentionSettings)})


class Studio:
    """A base model, and what all variants have in common. inputs: of the RB-Guidance KSampler, where they shall differ
    from `demo_inputs`. store: the folder of finished pictures."""

    def __init__(self, checkpoint: Path, store: Path, inputs: Mapping[str, object]) -> None:
        self.checkpoint, self.store, self.inputs = checkpoint, store, {**demo_inputs(), **inputs}
        # Read once: an edit during a run is not what the run executes.
        self._source = of_source(*SOURCES, __file__, without=DEFAULTS)
        self._rendered, self._decoded = of_source("lab/world", __file__), of_source("lab/world", *DECODER, __file__)
        self._encoders: dict[Path, object] = {}
        self._oracle = lru_cache(maxsize=None)(Oracle)

    @cached_property
    def _loaded(self) -> tuple:
        """model, clip, vae"""
        return loaded(self.checkpoint)

    @property
    def feature_block(self) -> int:
        """What the node's -1 stands for on this model."""
        return family_of(self._loaded[0]).feature_block(-1)

    def key(self, variant: Variant) -> str:
        """Equal for equal pictures: a digest of all that they depend on but the case."""
        if variant.source == "drawn":
            return digest("rendered", SIZE, self._rendered)
        if variant.source != "generated":
            versions = torch.__version__, __version__
            return digest(variant.source, SIZE, of_file(self.checkpoint), *versions, self._decoded)
        inputs = self.inputs | dict(variant.inputs)
        if inputs["feature_block"] < 0:
            inputs["feature_block"] = self.feature_block
        attention = {name: inputs.pop(name) for name in ATTENTION_INPUTS}
        if inputs["strength"] == 0:
            inputs = {name: inputs[name] for name in ("strength", *SAMPLING)}
        if attention["attention_strength"]:
            inputs |= attention
        files = [of_file(file) for file in (self.checkpoint, variant.encoder, variant.words) if file]
        device = str(comfy.model_management.get_torch_device())
        return digest(inputs, files, device, torch.__version__, __version__, self._source)

    def file(self, case: Case, variant: Variant) -> Path:
        return self.store / self.key(variant) / f"{case.person:03d}_{case.prompt:02d}.png"

    def portrait(self, case: Case, variant: Variant) -> Made:
        """From its file, or made now and kept."""
        file = self.file(case, variant)
        if not file.is_file():
            made = self._make(case, variant) if variant.source == "generated" else self._drawn(case, variant.source)
            made.save(file)
        return Made.load(file)

    def _drawn(self, case: Case, source: str) -> Made:
        shown = Case(stranger(case.person), case.prompt) if source == "stranger" else case
        image = torch.from_numpy(drawn(shown).picture.copy())[None].float() / 255
        if source != "drawn":
            vae = self._loaded[2]
            (latent,) = node(core.VAEEncode, vae=vae, pixels=image)
            (image,) = node(core.VAEDecode, vae=vae, samples=latent)
        picture = image[0].movedim(-1, 0).clamp(0, 1).cpu()
        return Made(picture, torch.zeros(SIZE, SIZE, dtype=torch.bool))

    def check(self, variant: Variant) -> None:
        """ValueError where this model cannot be guided so; a campaign asks before it begins."""
        values = self.inputs | dict(variant.inputs)
        attention_of(values)
        family_of(self._loaded[0]).feature_block(settings_of(values).block)

    def seconds(self, case: Case, variant: Variant) -> float:
        """Of sampling, now; the run pays for its reference."""
        features.forget_all()
        reference_tokens.forget_all()
        return self._sample(case, variant)[1]

    def _make(self, case: Case, variant: Variant) -> Made:
        (picture, traces), _ = self._sample(case, variant)
        if not traces:
            return Made(picture, torch.zeros(SIZE, SIZE, dtype=torch.bool))
        (trace,) = traces
        shares = [step.share for step in trace.steps if step.share == step.share]
        guided = len(shares) / len(trace.steps) if trace.steps else 0.0
        mask = trace.mask_for(torch.zeros(1, 4, SIZE // 8, SIZE // 8))[0]
        return Made(picture, mask > 0.5, guided, sum(shares) / len(shares) if shares else 0.0)

    def _sample(self, case: Case, variant: Variant) -> tuple[tuple[torch.Tensor, list[Trace]], float]:
        """The picture [3, S, S] with what the guidance did, and the seconds of sampling."""
        model, clip, vae = self._loaded
        positive = conditioned(clip, case, face_of([sitter(case.person).picture]), self._encoder(variant.encoder))
        if variant.words:
            positive = self._oracle(variant.words).said(positive, case.person)
        (negative,) = node(core.CLIPTextEncode, clip=clip, text="")
        (latent,) = node(core.EmptyLatentImage, width=SIZE, height=SIZE, batch_size=1)
        values = self.inputs | dict(variant.inputs)
        steps, cfg, sampler, scheduler = (values[name] for name in ("steps", "cfg", "sampler_name", "scheduler"))
        comfy.model_management.load_models_gpu([model])
        traces: list[Trace] = []
        start = time.perf_counter()
        with torch.inference_mode():  # the RB-Guidance KSampler, but for its plot
            attending = reference_attention.patch(model, vae, attention_of(values))
            guided = patch(attending, vae, settings_of(values), observe=traces.append)
            (latent,) = core.common_ksampler(
                guided, case.seed, steps, cfg, sampler, scheduler, positive, negative, latent
            )
        seconds = time.perf_counter() - start
        (image,) = node(core.VAEDecode, samples=latent, vae=vae)
        return (image[0].movedim(-1, 0).clamp(0, 1).cpu(), traces), seconds

    def _encoder(self, file: Path | None) -> object | None:
        if file is None:
            return None
        if file not in self._encoders:
            self._encoders[file] = load_handle(str(file))
        return self._encoders[file]
