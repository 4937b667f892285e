"""What overhead.py compares: ways to sample on the same loaded model, and meters inside one run: seconds, or the
floating-point operations of its matrix products and convolutions, forward and backward.

Needs ComfyUI and tests/comfy/lib on the path.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import comfy.model_patcher
import comfy.ops
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ...backbone.private import PrivateTwin, Tapped
from ...guidance.ic_portrait.settings import Settings as ICSettings
from ...guidance.omniportrait.settings import Settings
from ...guidance.reference_attention.settings import Settings as AttentionSettings
from ...models.ic.file import ICHeader
from ...models.ic.handle import ICHandle
from ...models.ic.nets import Appearance, Shape
from ...sampling import ic_portrait, reference_attention, reference_tokens
from ...sampling import reference as dift
from ...sampling.patch import patch
from ...sampling.people import ByHand
from ..testbed import small
from ..testbed.guiding import core

CFG = 7.5
WINDOW_SIGMA = 2.2851
"""Calls at or below it are those that u = 0.6 guides."""


def naive_tap(
    twin: PrivateTwin, block: int, x: torch.Tensor, sigma: torch.Tensor, arguments: dict, options: dict, *_: object
) -> Tapped:
    """The straightforward way: a whole UNet forward of its own with autograd on, whatever the feature block."""
    features: list[torch.Tensor] = []

    def keep(h: torch.Tensor, skip: torch.Tensor, options: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Runs before each output block, so that h is the one before's."""
        if options["block"] == ("output", block + 1):
            features.append(h)
        return h, skip

    patches = options.get("patches", {})
    own = {**patches, "output_block_patch": [keep, *patches.get("output_block_patch", [])]}
    denoised = twin.whole(x, sigma, arguments, {**options, "patches": own})
    return Tapped(features[0], denoised)


@dataclass(frozen=True)
class Contender:
    """name: as printed. prepare: (model, vae) to the model that is sampled. naive: swap the twin's pass. finds: the
    face's place is not given by hand, but read off the attention of the person's word. cached: it has run before."""

    name: str
    prepare: Callable[[object, object], object]
    naive: bool = False
    finds: bool = False
    cached: bool = False


def middle() -> torch.Tensor:
    """A fifth of the picture. Random weights have no attention that finds a face: it is the mask by hand, or bounds
    the search."""
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:90, 35:93] = 1
    return mask


def by_hand() -> ByHand:
    return ByHand(small.face(), middle())


def ours(**settings: object) -> Callable[[object, object], object]:
    def prepare(model: object, vae: object) -> object:
        with torch.inference_mode():
            return patch(model, vae, Settings(**settings), by_hand())

    return prepare


def attending(model: object, vae: object) -> object:
    """Reference Attention as its node has it."""
    with torch.inference_mode():
        return reference_attention.patch(model, vae, AttentionSettings(), by_hand())


def beside_a_profile(model: object, vae: object) -> object:
    """IC-Portrait as its node has it, with nets that are copies of the UNet."""
    config = model.model.model_config.unet_config
    if config.get("adm_in_channels"):
        raise ValueError("IC-Portrait has no nets for this family.")
    shape = Shape.of(config)
    net = Appearance(shape, comfy.ops.manual_cast, device="meta")
    net.begin_with(model.model.diffusion_model)
    net = net.requires_grad_(False).to(model.model.get_dtype())
    held = comfy.model_patcher.ModelPatcher(net, load_device=model.load_device, offload_device=model.offload_device)
    handle = ICHandle("copies", ICHeader(shape, 0), held, None)
    face = replace(small.face(), landmarks=((45.0, 55.0), (80.0, 55.0), (62.0, 72.0), (50.0, 88.0), (76.0, 88.0)))
    with torch.inference_mode():
        return ic_portrait.patch(model, vae, handle, face, face, ICSettings())


def of_core(module: str, node: str, **inputs: object) -> Callable[[object, object], object]:
    def prepare(model: object, vae: object) -> object:
        import importlib

        return core(getattr(importlib.import_module(f"comfy_extras.{module}"), node), model=model, **inputs)[0]

    return prepare


def contenders(lower_block: int) -> list[Contender]:
    """Plain first: the others are told as multiples of it."""
    return [
        Contender("plain KSampler", lambda model, vae: model),
        Contender("RB-Guidance", ours()),
        Contender("RB-Guidance, the face found by attention", ours(), finds=True),
        Contender("RB-Guidance, strength 0", ours(strength=0.0)),
        Contender("RB-Guidance, checkpointing", ours(checkpointing="on")),
        Contender("RB-Guidance, in ComfyUI's own call", ours(guided_pass="shared")),
        Contender("RB-Guidance, in ComfyUI's own call, checkpointing", ours(guided_pass="shared", checkpointing="on")),
        Contender("every sigma", ours(every=1)),
        Contender("every sigma, checkpointing", ours(every=1, checkpointing="on")),
        Contender(f"every sigma, feature block {lower_block}", ours(every=1, block=lower_block)),
        Contender("every sigma, in ComfyUI's own call", ours(every=1, guided_pass="shared")),
        Contender("Reference Attention", attending),
        Contender("Reference Attention, cached", attending, cached=True),
        Contender("IC-Portrait", beside_a_profile),
        Contender("naive: whole forward and backward", ours(every=1, checkpointing="off"), naive=True),
        Contender("PAG (core)", of_core("nodes_pag", "PerturbedAttentionGuidance", scale=3.0)),
        Contender("SAG (core)", of_core("nodes_sag", "SelfAttentionGuidance", scale=0.5, blur_sigma=2.0)),
    ]


@dataclass
class Metered:
    """One run, in the meter's unit. calls: (sigma, amount) of each prediction. whole: of the sampling. reference: of
    the reference's features, without the VAE, which is a small one here. peak: bytes above what was in use before."""

    calls: list[tuple[float, float]] = field(default_factory=list)
    whole: float = 0.0
    reference: float = 0.0
    peak: int = 0


Meter = Callable[[], float]
ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *qkv, **_: sdpa_flop_count(*qkv[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda *gqkv, **_: sdpa_backward_flop_count(*gqkv[:4])
    ),
}
"""Attention on a CPU, which torch's counter has no formula for."""


def seconds(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextlib.contextmanager
def metered(owner: object, name: str, add: Callable[[float], None], meter: Meter) -> Iterator[None]:
    """Inside, each call of `owner.name` adds what it took."""
    original = getattr(owner, name)

    def watched(*args: object, **kwargs: object) -> object:
        start = meter()
        try:
            return original(*args, **kwargs)
        finally:
            add(meter() - start)

    setattr(owner, name, watched)
    try:
        yield
    finally:
        setattr(owner, name, original)


def timed_run(contender: Contender, model: object, vae: object, side: int, steps: int) -> Metered:
    """In seconds."""
    return _run(contender, model, vae, side, steps, lambda: seconds(model.load_device))


def counted_run(contender: Contender, model: object, vae: object, side: int, steps: int) -> Metered:
    """In floating-point operations, as torch counts them: what a way would take if nothing but arithmetic took time,
    and all arithmetic went at one speed."""
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        return _run(contender, model, vae, side, steps, counter.get_total_flops)


def _run(contender: Contender, model: object, vae: object, side: int, steps: int, meter: Meter) -> Metered:
    """Euler on the normal schedule from an empty latent, with the reference's features and tokens made anew."""
    from comfy.patcher_extension import WrappersMP

    run, device = Metered(), model.load_device
    watched = contender.prepare(model, vae).clone()

    def predict(executor: Callable, x: torch.Tensor, sigma: torch.Tensor, *args: object, **kwargs: object) -> object:
        before, start = run.reference, meter()
        result = executor(x, sigma, *args, **kwargs)
        run.calls.append((float(sigma[0]), meter() - start - (run.reference - before)))
        return result

    def add_reference(amount: float) -> None:
        run.reference += amount

    watched.wrappers = {
        kind: {key: list(values) for key, values in table.items()} for kind, table in watched.wrappers.items()
    }
    table = watched.wrappers.setdefault(WrappersMP.PREDICT_NOISE, {})
    watched.wrappers[WrappersMP.PREDICT_NOISE] = {"overhead": [predict], **table}  # outermost: it meters the others
    dift.forget_all()
    reference_tokens.forget_all()
    positive = small.annotated(model, region=middle()) if contender.finds else small.conditioning(model, 1)
    options = {"steps": steps, "size": (side, side), "cfg": CFG}
    if contender.cached:
        small.sample(contender.prepare(model, vae), positive, **options)
    with contextlib.ExitStack() as stack:
        if contender.naive:
            stack.callback(setattr, PrivateTwin, "tap", PrivateTwin.tap)
            PrivateTwin.tap = naive_tap
        stack.enter_context(metered(dift, "compute", add_reference, meter))
        used = reset_peak(device)
        start = meter()
        small.sample(watched, positive, **options)
        run.whole = meter() - start
        run.peak = peak(device) - used
    return run


def reset_peak(device: torch.device) -> int:
    """Forget the highest memory use so far; what is in use now, in bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError):  # Linux only
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak(device: torch.device) -> int:
    """The highest memory use since `reset_peak`, in bytes; on a CPU the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    scale = 1 if sys.platform == "darwin" else 1024
    return scale * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
