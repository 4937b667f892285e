"""Guided runs, what a run leaves behind on a model, and core's own nodes called as ComfyUI calls them."""

from __future__ import annotations

import hashlib

import torch

from ...backbone.family import family_of
from ...guidance.omniportrait.settings import Settings
from ...guidance.reference_attention.settings import Settings as AttentionSettings
from ...sampling import passes, reference_attention
from ...sampling.patch import patch
from ...sampling.trace import Trace
from . import small

BETA = 0.5
"""Where a random model's attention gives a mask that is neither empty nor everything."""
CLIP = 0.3
"""A cap that leaves a random model's guidance well above the rounding of its pictures."""


def guide(model, vae, by_hand=None, **settings) -> tuple[object, list[Trace]]:
    """The patched model, made as the node makes it, and the list that its runs' traces are put into."""
    traces: list[Trace] = []
    with torch.inference_mode():
        chosen = Settings(**{"beta": BETA, "clip": CLIP, "every": 1, **settings})
        return patch(model, vae, chosen, by_hand, observe=traces.append), traces


def attending(model, vae, **settings) -> object:
    """The model with Reference Attention, made as the node makes it; from the first of so few steps on."""
    with torch.inference_mode():
        return reference_attention.patch(model, vae, AttentionSettings(**{"start_percent": 0.0, **settings}))


def guided(model, vae, positive, *, settings=None, by_hand=None, **options) -> tuple[torch.Tensor, Trace]:
    """One guided run of `small.sample`; options are the sampler's."""
    patched, traces = guide(model, vae, by_hand, **(settings or {}))
    picture = small.sample(patched, positive, **options)
    (trace,) = traces
    return picture, trace


ONE_CALL = {"sigmas": torch.tensor([1.5, 0.0]), "steps": 1}
"""One step inside the window down to sigma 0: the result is the denoised picture, so the change is sigma times g."""


def change(model, vae, positive, settings=None, by_hand=None, **options) -> tuple[torch.Tensor, Trace]:
    """(guided - plain, trace) of one call."""
    plain = small.sample(model, positive, **ONE_CALL, **options)
    picture, trace = guided(model, vae, positive, settings=settings, by_hand=by_hand, **ONE_CALL, **options)
    return picture - plain, trace


def assert_guided(trace: Trace, calls: int | None = None) -> None:
    """Every call in the window was guided, with a mask that is a part of the picture and a gradient that is not 0."""
    assert trace.steps and not trace.skipped, trace.summary()
    assert calls is None or len(trace.steps) == calls, trace.summary()
    for step in trace.steps:
        assert 0 < step.share < 10 and 0 < step.similarity < 1, step
        assert 0 < step.mask.sum() < step.mask.numel(), step


def assert_effective(picture: torch.Tensor, plain: torch.Tensor) -> None:
    """Finite, and not the plain picture, by more than the rounding of its largest value."""
    assert picture.shape == plain.shape and picture.isfinite().all()
    assert (picture - plain).abs().max() > 1e-5 * plain.abs().max()


def assert_checkpointing_keeps_the_gradient(model, vae, positive, **options) -> None:
    """One call, uncapped and far above the picture's rounding: recomputed activations give the same gradient.

    A block that is recomputed from an input which somebody has written into since would not.
    """
    loud = {"clip": 0.0, "gain": 1e6}
    kept, trace = change(model, vae, positive, loud | {"checkpointing": "off"}, **options)
    recomputed, _ = change(model, vae, positive, loud | {"checkpointing": "on"}, **options)
    assert trace.steps and not trace.skipped, trace.summary()
    scale = float(kept.abs().max())
    assert scale > 0
    torch.testing.assert_close(recomputed, kept, rtol=1e-3, atol=1e-3 * scale)


def watched(
    model, vae, positive, *, tolerance=1e-4, by_hand=None, settings=None, **options
) -> tuple[torch.Tensor, Trace]:
    """`guided`, and the features of every private pass must be those of ComfyUI's own forward for the same rows.

    A patch on the block after the feature block sees the main forward only, for the private pass leaves before it. So
    whatever is wrong with weights, control, patches or rows shows. tolerance: of the largest feature.
    """
    block = family_of(model).feature_block((settings or {}).get("block", -1))
    private, main = [], {}

    def tap(h, skip, transformer_options):
        if transformer_options["block"] == ("output", block + 1):
            sigma = float(transformer_options["sigmas"][0])
            owners = zip(transformer_options["uuids"], transformer_options["cond_or_uncond"], strict=True)
            for (uuid, side), own in zip(owners, h.clone().chunk(len(transformer_options["uuids"])), strict=True):
                main.setdefault((uuid, side, sigma), own)
        return h, skip

    def spy(twin, block, part, recorded, canvas, sigma, *args):
        rows = original(twin, block, part, recorded, canvas, sigma, *args)
        # side 0: ComfyUI copies an area to the negative under the same uuid
        private.append((rows.features.detach().clone(), main[part.uuid, 0, float(sigma[0])]))
        return rows

    tapped = model.clone()
    patches = tapped.model_options["transformer_options"].setdefault("patches", {})
    patches["output_block_patch"] = [tap, *patches.get("output_block_patch", [])]
    original, passes.run_rows = passes.run_rows, spy
    try:
        result = guided(tapped, vae, positive, settings=settings, by_hand=by_hand, **options)
    finally:
        passes.run_rows = original
    assert private
    for features, expected in private:
        expected = expected.float()
        error = float((features.float() - expected).abs().max() / expected.abs().max())
        assert error <= tolerance, error
    return result


def core(node: type, **inputs) -> tuple:
    """Run a core node under inference mode, whichever schema the core wrote it in; its outputs as a tuple."""
    with torch.inference_mode():
        if hasattr(node, "execute"):
            return tuple(node.execute(**inputs).result)
        instance = node()
        return tuple(getattr(instance, node.FUNCTION)(**inputs))


def _structure(value: object) -> object:
    """Containers by content, everything else by identity."""
    if isinstance(value, dict):
        return {key: _structure(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_structure(each) for each in value]
    return id(value)


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().clone().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def footprint(model) -> dict:
    """All that a run could leave changed on a MODEL, comparable by ==."""
    base = model.model
    return {
        "parameters": {
            name: (id(p), p.is_inference(), p.requires_grad, p.grad is None, p.data_ptr(), _digest(p))
            for name, p in [*base.named_parameters(), *base.named_buffers()]
        },
        "modules": {
            name: (id(m), type(m), m.training, sorted(m.__dict__), sorted(m._modules), len(m._forward_hooks))
            for name, m in base.named_modules()
        },
        "forwards": {name: id(m.__dict__.get("forward")) for name, m in base.named_modules()},
        "options": _structure(model.model_options),
        "wrappers": _structure(model.wrappers),
        "callbacks": _structure(model.callbacks),
        "patches": _structure(model.patches),
        "object patches": _structure(model.object_patches),
        "patches_uuid": (model.patches_uuid, base.current_weight_patches_uuid),
    }
