"""A recorder of ComfyUI's own prediction: which rows are whose, ControlNet's residuals, the CFG difference."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..backbone.attention import private_options
from ..backbone.foreign import watch_patches
from ..backbone.tensors import map_tensors, some_rows

KEY = "omniportrait"
"""Key of our wrappers on a model."""
APPLY_MODEL_ARGUMENTS = ("c_concat", "c_crossattn", "control", "transformer_options")
"""Those after x and t that ComfyUI gives by place."""
SESSION_KEY = "omniportrait_session"
"""Where a session lives: the guider's per-run transformer_options. Nothing outlives the run."""


@dataclass(frozen=True, eq=False)
class Call:
    """What one call of apply_model was given: ComfyUI's batch of several conditionings' rows."""

    transformer_options: dict
    control: dict | None
    text: torch.Tensor | None

    @classmethod
    def of(cls, text: torch.Tensor | None, control: dict | None, transformer_options: dict) -> Call:
        """Copies ControlNet's lists, which the UNet pops as it goes."""
        control = {name: list(values) for name, values in control.items()} if control else None
        return cls(transformer_options, control, text)

    def places_of(self, uuid: object) -> list[int]:
        """Where in the batch of conditionings a uuid stands."""
        return [place for place, each in enumerate(self.transformer_options["uuids"]) if each == uuid]

    def has_text_of(self, cond: dict, place: int) -> bool:
        """Whether the rows at a place read a conditioning's own text (repeated, where another one is longer)."""
        own = cond.get("model_conds", {}).get("c_crossattn")
        if own is None or self.text is None:
            return False
        rows = len(self.text) // len(self.transformer_options["uuids"])
        there = self.text[place * rows, : own.cond.shape[1]]
        return torch.equal(there, own.cond[0].to(there))

    def control_of(self, place: int, like: torch.Tensor) -> dict | None:
        """ControlNet's residuals for the conditioning at a place, whose pictures are `like`; another card may have
        worked on the call (MultiGPU Work Units)."""
        rows = len(like)
        start, all_rows = place * rows, rows * len(self.transformer_options["uuids"])
        own = some_rows(self.control, [slice(start, start + rows)], all_rows)
        return map_tensors(own, lambda tensor: tensor.to(like.device))

    def options_of(self, place: int, device: torch.device) -> dict:
        """A private copy of the call's transformer_options for one conditioning's rows alone, on a device.

        Wrappers and callbacks are left empty: they are other packs' (caches, step counters), and our pass is not a
        step.
        """
        options = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in self.transformer_options.items()
            if name != SESSION_KEY
        }
        options |= {"wrappers": {}, "callbacks": {}}
        options["uuids"] = [options["uuids"][place]]
        options["cond_or_uncond"] = [options["cond_or_uncond"][place]]
        watch_patches(options)
        if self.control is not None or "output_block_patch" in options["patches"]:
            options["patches"].setdefault("input_block_patch_after_skip", []).append(spare_the_skip)
        return private_options(options)


def spare_the_skip(h: torch.Tensor, transformer_options: dict) -> torch.Tensor:
    """Give the next block an input of its own: ControlNet and other packs write into the skip connection, which is the
    same tensor, and the way back needs it as it was."""
    return h.clone()


class Recorded(NamedTuple):
    """A conditioning's rows: the call that they were in, and their place in its batch."""

    call: Call
    place: int


class Recorder:
    """Records exactly one prediction at a time and changes nothing about it.

    uuids: of the conditionings that carry people; only calls with their rows are kept.
    """

    def __init__(self, uuids: Container) -> None:
        self.uuids = uuids
        self.ambiguous: Container = ()
        """Uuids under which several conditionings go: their text tells them apart."""
        self.calls: list[Call] = []
        self.cfg_difference: torch.Tensor | None = None
        self.share: Callable | None = None
        """(proceed, x, t, arguments) to the prediction: runs some rows of a call itself (shared_call.py)."""
        self.open = False
        """Whether the prediction is being made."""

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Forget the last prediction and record what happens inside."""
        self.calls, self.cfg_difference, self.open = [], None, True
        try:
            yield
        finally:
            self.open = False

    def forget(self) -> None:
        """Let go of all that was recorded: a call's options hold the session, which holds this recorder."""
        self.calls, self.cfg_difference, self.share = [], None, None

    def record_call(self, text: torch.Tensor | None, control: dict | None, transformer_options: dict) -> bool:
        """One call of apply_model; text: [B, T, D] of its cross-attention. Whether it was kept."""
        ours = self.open and any(uuid in self.uuids for uuid in transformer_options.get("uuids", ()))
        if ours:
            self.calls.append(Call.of(text, control, transformer_options))
        return ours

    def rows_of(self, cond: dict) -> Recorded | None:
        """The first call that holds a conditioning's rows; later ones are other packs' passes.

        ComfyUI copies an area under the same uuid to the guidance's other side, so there the text decides which is
        which. Nowhere else, since a GPU may be waited for; and if another pack has changed it, the first will do, once
        all calls have been recorded.
        """
        candidates = [Recorded(call, place) for call in self.calls for place in call.places_of(cond["uuid"])]
        if cond["uuid"] in self.ambiguous:
            own = [each for each in candidates if each.call.has_text_of(cond, each.place)]
            candidates = own or ([] if self.open else candidates)
        return candidates[0] if candidates else None

    def record_cfg(self, cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> None:
        """w (denoised_c - denoised_u)."""
        if self.open:
            self.cfg_difference = (cond - uncond) * scale


def install(patched: object, outer_sample: Callable, predict_noise: Callable) -> None:
    """Put the four functions on a clone: the caller's two, and the two that feed the session's recorder.

    A method that changes the prediction instead of correcting it (residuals, keys for attention) would do so in
    `apply_model`, which sees each call of the network before and after.
    """
    from comfy.patcher_extension import WrappersMP

    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, predict_noise)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model)
    patched.set_model_sampler_post_cfg_function(post_cfg)


def uninstall(model: object) -> None:
    """Take our functions off a clone; another pack's stay."""
    for wrappers in model.wrappers.values():
        wrappers.pop(KEY, None)
    functions = model.model_options.get("sampler_post_cfg_function")
    if functions:
        model.model_options["sampler_post_cfg_function"] = [each for each in functions if each is not post_cfg]


def apply_model(executor: Callable, x: torch.Tensor, t: torch.Tensor, *args: object, **kwargs: object) -> object:
    """ComfyUI's APPLY_MODEL."""
    names = APPLY_MODEL_ARGUMENTS[: len(args)]
    named = {**dict(zip(names, args, strict=False)), **kwargs}

    def proceed(x: torch.Tensor, t: torch.Tensor, named: dict) -> object:
        by_place = [named[name] for name in names]
        return executor(x, t, *by_place, **{name: named[name] for name in kwargs})

    session = session_of(named)
    if session is not None:
        recorder = session.recorder
        ours = recorder.record_call(named.get("c_crossattn"), named.get("control"), named["transformer_options"])
        if ours and recorder.share is not None:
            return recorder.share(proceed, x, t, named)
    return executor(x, t, *args, **kwargs)


def post_cfg(args: dict) -> object:
    """ComfyUI's sampler_post_cfg_function."""
    session = session_of(args["model_options"])
    if session is not None and args.get("uncond") is not None:
        session.recorder.record_cfg(args["cond_denoised"], args["uncond_denoised"], args["cond_scale"])
    return args["denoised"]


def session_of(options: dict | None) -> object | None:
    """The session in some model_options, or in the arguments of apply_model."""
    return ((options or {}).get("transformer_options") or {}).get(SESSION_KEY)
