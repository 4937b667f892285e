"""One cell of the matrix: a small model, a workflow of core's own nodes, and what has to hold for it.

Needs ComfyUI and tests/comfy/lib on the path (matrix.py and the tests see to that).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import get_args

import comfy.cldm.cldm
import comfy.controlnet
import comfy.samplers
import comfy.sd
import torch
from comfy_extras import nodes_custom_sampler as custom

import nodes

from ...guidance.omniportrait.settings import GuidedPass, Settings
from ..testbed import small
from ..testbed.guiding import attending, core, guide

FAMILIES = ("sd15", "sdxl")
DTYPES = {
    "fp32": {},
    "bf16": {"dtype": torch.bfloat16},
    "fp16": {"dtype": torch.float16},
    "fp8": {"dtype": torch.float8_e4m3fn, "manual_cast": torch.bfloat16},
}
STEPS, CFG, SEED, SIDE = 4, 5.0, 3, 16
MORE_STEPS = {"dpm_fast": 6}
"""Samplers that need more steps to come into the default window: dpm_fast takes only its ends from the schedule, goes
evenly in log sigma between them, and in 4 steps never calls below the middle."""
LATE = {"linear_quadratic"}
"""Schedulers all of whose few steps lie before the default window: with them every step is guided."""
PIXELS = 8 * SIDE


@dataclass(frozen=True)
class Cell:
    """One combination. The names are core's own, those of MODES, FAMILIES and DTYPES, and the node's."""

    sampler: str
    scheduler: str
    mode: str
    family: str
    dtype: str
    guided_pass: str = "full"
    attention: str = "off"

    @property
    def key(self) -> str:
        return " ".join(asdict(self).values())


@dataclass(frozen=True)
class Result:
    """status: ok (why says whether some people or pictures stayed unguided); broken (why says what did not hold); core
    (core's plain run already fails or is not finite)."""

    status: str
    why: str
    guided_calls: int
    seconds: float


def steps_of(cell: Cell) -> int:
    return MORE_STEPS.get(cell.sampler, STEPS)


def latent(batch: int = 1, filled: bool = False, seed: int = 11) -> dict:
    shape = (batch, 4, SIDE, SIDE)
    generator = torch.Generator().manual_seed(seed)
    return {"samples": torch.randn(shape, generator=generator) if filled else torch.zeros(shape)}


def ksampler(model, cell: Cell, positive, negative, start: dict, denoise: float = 1.0) -> dict:
    """Core's KSampler."""
    return core(
        nodes.KSampler,
        model=model,
        seed=SEED,
        steps=steps_of(cell),
        cfg=CFG,
        sampler_name=cell.sampler,
        scheduler=cell.scheduler,
        positive=positive,
        negative=negative,
        latent_image=start,
        denoise=denoise,
    )[0]


def person(model, **options) -> tuple[list, list]:
    return small.annotated(model, **options), small.conditioning(model, 2)


# The modes: (model to sample, model to prepare with, cell) to the samples. Both models share weights; what is prepared
# with is always the plain one.


def txt2img(model, cell):
    return ksampler(model, cell, *person(model), latent())["samples"]


def img2img(model, cell):
    return ksampler(model, cell, *person(model), latent(filled=True), denoise=0.6)["samples"]


def inpaint(model, cell):
    """The person's region is the inpainted part: a random model may well find the face in the part that is kept, where
    core puts the old picture back and nothing of the guidance stays."""
    mask = torch.zeros(1, PIXELS, PIXELS)
    mask[:, 16:112, 24:104] = 1
    (start,) = core(nodes.SetLatentNoiseMask, samples=latent(filled=True), mask=mask)
    return ksampler(model, cell, *person(model, region=mask), start, denoise=0.8)["samples"]


def batch(model, cell):
    return ksampler(model, cell, *person(model), latent(batch=2))["samples"]


def two_people(model, cell):
    halves = torch.zeros(2, 1, PIXELS, PIXELS)
    halves[0, ..., : PIXELS // 2], halves[1, ..., PIXELS // 2 :] = 1, 1
    records = tuple(small.record(model, token=5 + 4 * k, seed=k, region=half) for k, half in enumerate(halves))
    tensor, options = small.conditioning(model, 1)[0]
    positive = [[tensor, options | {small.RECORDS_KEY: records}]]
    return ksampler(model, cell, positive, small.conditioning(model, 2), latent())["samples"]


def area(model, cell):
    positive, negative = person(model)
    place = {"width": PIXELS, "height": PIXELS // 2, "x": 0, "y": PIXELS // 2, "strength": 1.0}
    (positive,) = core(nodes.ConditioningSetArea, conditioning=positive, **place)
    return ksampler(model, cell, positive + small.conditioning(model, 7), negative, latent())["samples"]


def controlnet(model, cell):
    positive, negative = person(model)
    image = torch.rand(1, PIXELS, PIXELS, 3, generator=torch.Generator().manual_seed(12))
    values = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "image": image}
    net = control_net(cell.family)
    positive, negative = core(
        nodes.ControlNetApplyAdvanced, positive=positive, negative=negative, control_net=net, **values
    )
    return ksampler(model, cell, positive, negative, latent())["samples"]


def lora(model, cell):
    with torch.inference_mode():
        model = comfy.sd.load_lora_for_models(model, None, small.lora(model), 1.0, 0)[0]
    return txt2img(model, cell)


def hires(model, cell):
    first = ksampler(model, cell, *person(model), latent())
    (larger,) = core(nodes.LatentUpscaleBy, samples=first, upscale_method="bilinear", scale_by=1.5)
    return ksampler(model, cell, *person(model), larger, denoise=0.5)["samples"]


def advanced_split(model, cell):
    positive, negative = person(model)
    end = steps_of(cell)
    middle = end // 2
    shared = {"noise_seed": SEED, "steps": end, "cfg": CFG, "positive": positive, "negative": negative}
    shared |= {"model": model, "sampler_name": cell.sampler, "scheduler": cell.scheduler}
    first = {"add_noise": "enable", "start_at_step": 0, "end_at_step": middle, "return_with_leftover_noise": "enable"}
    last = {"add_noise": "disable", "start_at_step": middle, "end_at_step": end}
    last |= {"return_with_leftover_noise": "disable"}
    (half,) = core(nodes.KSamplerAdvanced, latent_image=latent(), **shared, **first)
    return core(nodes.KSamplerAdvanced, latent_image=half, **shared, **last)[0]["samples"]


def sampler_custom(model, cell):
    positive, negative = person(model)
    (noise,) = core(custom.RandomNoise, noise_seed=SEED)
    (guider,) = core(custom.CFGGuider, model=model, positive=positive, negative=negative, cfg=CFG)
    (sampler,) = core(custom.KSamplerSelect, sampler_name=cell.sampler)
    steps = steps_of(cell)
    (sigmas,) = core(custom.BasicScheduler, model=model, scheduler=cell.scheduler, steps=steps, denoise=1.0)
    parts = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent()}
    return core(custom.SamplerCustomAdvanced, **parts)[0]["samples"]


MODES: dict[str, Callable] = {
    "txt2img": txt2img,
    "img2img": img2img,
    "inpaint": inpaint,
    "batch": batch,
    "two people": two_people,
    "area": area,
    "ControlNet": controlnet,
    "LoRA": lora,
    "hires second pass": hires,
    "KSampler Advanced split": advanced_split,
    "SamplerCustomAdvanced": sampler_custom,
}


def columns() -> dict[str, list[str]]:
    """The matrix's columns, with the samplers and schedulers of the core that is loaded."""
    return {
        "sampler": list(comfy.samplers.KSampler.SAMPLERS),
        "scheduler": list(comfy.samplers.KSampler.SCHEDULERS),
        "mode": list(MODES),
        "family": list(FAMILIES),
        "dtype": list(DTYPES),
        "guided_pass": list(get_args(GuidedPass)),
        "attention": ["off", "on"],
    }


def control_net(family: str):
    """ComfyUI's own ControlNet of the small model's shape, with random weights."""
    shape = small.SD15 if family == "sd15" else small.SDXL
    shape = {k: v for k, v in shape.items() if k not in ("out_channels", "transformer_depth_output")}
    with torch.inference_mode():
        net = comfy.cldm.cldm.ControlNet(**shape, hint_channels=3, device="cpu")
        generator = torch.Generator().manual_seed(6)
        for name, p in net.named_parameters():
            scale = 0.1 if p.ndim < 2 else 0.5 / max(p[0].numel(), 1) ** 0.5
            p.data = torch.randn(p.shape, generator=generator) * scale
            if p.ndim == 1 and name.endswith("weight"):
                p.data += 1
    net.dtype = torch.float32
    return comfy.controlnet.ControlNet(net, load_device=torch.device("cpu"))


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit; NaN equals NaN."""
    return a.shape == b.shape and torch.equal(a.nan_to_num(7.0, 8.0, 9.0), b.nan_to_num(7.0, 8.0, 9.0))


def try_cell(cell: Cell, vae: object) -> Result:
    """Run a cell: plain, at strength 0, guided twice from the start, and plain once more; with Reference Attention
    also by itself."""
    start = time.perf_counter()
    model, mode = getattr(small, cell.family)(**DTYPES[cell.dtype]), MODES[cell.mode]
    settings = {"guided_pass": cell.guided_pass, "every": Settings().every, "clip": Settings().clip}
    settings |= {"u": 1.0} if cell.scheduler in LATE else {}
    attends = cell.attention == "on"

    def ours(model: object, strength: float = 1.0) -> tuple[object, list]:
        attended = attending(model, vae, strength=strength, levels="all") if attends else model
        return guide(attended, vae, strength=strength, **settings)

    def result(status: str, why: str = "", calls: int = 0) -> Result:
        return Result(status, why, calls, round(time.perf_counter() - start, 2))

    try:
        plain = mode(model, cell)
    except Exception as error:
        return result("core", f"core's plain run raises {type(error).__name__}: {str(error)[:160]}")
    try:
        off = mode(ours(model, strength=0.0)[0], cell)
        patched, traces = ours(model)
        first = mode(patched, cell)
        alone = mode(attending(model, vae, levels="all"), cell) if attends else first
        again = mode(ours(getattr(small, cell.family)(**DTYPES[cell.dtype]))[0], cell)
        after = mode(model, cell)
    except Exception as error:
        return result("broken", f"raises {type(error).__name__}: {str(error)[:300]}")
    calls = sum(step.similarity == step.similarity for trace in traces for step in trace.steps)
    skipped = sum((trace.skipped for trace in traces), type(traces[0].skipped)()) if traces else {}
    unguided = "; ".join(f"unguided {count} times because {reason}" for reason, count in skipped.items())
    finite = bool(plain.isfinite().all())
    wrong = [
        sentence
        for holds, sentence in (
            (same(off, plain), "strength 0 is not bit-equal to plain"),
            (same(first, again), "the same seed gave another picture"),
            (same(after, plain), "a plain run after the guided one is not bit-equal to the one before"),
            (bool(first.isfinite().all()) or not finite, "the guided picture is not finite"),
            (calls > 0 or not finite, f"no call was guided ({dict(skipped)})"),
            (not same(first, plain) or not finite, "the guided picture is the plain one"),
            (not same(alone, plain) or not finite, "the picture that sees the reference is the plain one"),
            (not attends or not same(alone, first) or not finite, "RB-Guidance adds nothing to Reference Attention"),
        )
        if not holds
    ]
    if wrong:
        return result("broken", "; ".join(wrong), calls)
    return result("ok", unguided, calls) if finite else result("core", "core's plain picture is not finite", calls)
