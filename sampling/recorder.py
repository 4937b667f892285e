"""What ComfyUI's own prediction tells us while it is made: which rows are whose, ControlNet's residuals, the CFG
difference."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator

import torch

from .rows import Call

KEY = "omniportrait"
"""Key of our wrappers on a model."""
APPLY_MODEL_ARGUMENTS = ("c_concat", "c_crossattn", "control", "transformer_options")
"""Those after x and t that ComfyUI gives by place."""
RUN_KEY = "omniportrait_run"
"""Where a run lives: the guider's per-run transformer_options. Nothing outlives the run."""


class Listener:
    """Hears exactly one prediction at a time and changes nothing about it.

    uuids: of the conditionings that carry people; only calls with their rows are kept.
    """

    def __init__(self, uuids: Container) -> None:
        self.uuids = uuids
        self.ambiguous: Container = ()
        """Uuids under which several conditionings go: their text tells them apart."""
        self.calls: list[Call] = []
        self.cfg_difference: torch.Tensor | None = None
        self.share: Callable | None = None
        """(proceed, x, t, arguments) to the prediction: makes some rows of a call itself (sampling/shared_call.py)."""
        self.open = False
        """Whether the prediction is being made."""

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Forget the last prediction and hear what happens inside."""
        self.calls, self.cfg_difference, self.open = [], None, True
        try:
            yield
        finally:
            self.open = False

    def forget(self) -> None:
        """Let go of all that was heard: a call's options hold the run, which holds this listener."""
        self.calls, self.cfg_difference, self.share = [], None, None

    def heard_call(self, text: torch.Tensor | None, control: dict | None, transformer_options: dict) -> bool:
        """One call of apply_model; text: [B, T, D] rows of its cross-attention. Whether it was kept."""
        ours = self.open and any(uuid in self.uuids for uuid in transformer_options.get("uuids", ()))
        if ours:
            self.calls.append(Call.of(text, control, transformer_options))
        return ours

    def call_of(self, cond: dict) -> tuple[Call, int] | None:
        """The first call that holds a conditioning's rows, and their place in it; later ones are other packs' passes.

        ComfyUI copies an area under the same uuid to the guidance's other side, so there the text decides which is
        which. Nowhere else, since a GPU may be waited for; and if another pack has changed it, the first will do, once
        all calls have been heard.
        """
        candidates = [(call, place) for call in self.calls for place in call.places_of(cond["uuid"])]
        if cond["uuid"] in self.ambiguous:
            own = [(call, place) for call, place in candidates if call.has_text_of(cond, place)]
            candidates = own or ([] if self.open else candidates)
        return candidates[0] if candidates else None

    def heard_cfg(self, cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> None:
        """w (denoised_c - denoised_u)."""
        if self.open:
            self.cfg_difference = (cond - uncond) * scale


def install(patched: object, outer_sample: Callable, predict_noise: Callable) -> None:
    """Put the four closures on a clone: the caller's two, and the two that pass on what the run's listener should
    hear."""
    from comfy.patcher_extension import WrappersMP

    def apply_model(executor: Callable, x: torch.Tensor, t: torch.Tensor, *args: object, **kwargs: object) -> object:
        names = APPLY_MODEL_ARGUMENTS[: len(args)]
        named = {**dict(zip(names, args, strict=False)), **kwargs}

        def proceed(x: torch.Tensor, t: torch.Tensor, named: dict) -> object:
            by_place = [named[name] for name in names]
            return executor(x, t, *by_place, **{name: named[name] for name in kwargs})

        run = run_of(named)
        if run is not None:
            listener = run.listener
            ours = listener.heard_call(named.get("c_crossattn"), named.get("control"), named["transformer_options"])
            if ours and listener.share is not None:
                return listener.share(proceed, x, t, named)
        return executor(x, t, *args, **kwargs)

    def post_cfg(args: dict) -> object:
        run = run_of(args["model_options"])
        if run is not None and args.get("uncond") is not None:
            run.listener.heard_cfg(args["cond_denoised"], args["uncond_denoised"], args["cond_scale"])
        return args["denoised"]

    post_cfg.omniportrait = True
    patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, predict_noise)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, apply_model)
    patched.set_model_sampler_post_cfg_function(post_cfg)


def uninstall(model: object) -> None:
    """Take our closures off a clone; another pack's stay."""
    for wrappers in model.wrappers.values():
        wrappers.pop(KEY, None)
    functions = model.model_options.get("sampler_post_cfg_function")
    if functions:
        model.model_options["sampler_post_cfg_function"] = [
            f for f in functions if not getattr(f, "omniportrait", False)
        ]


def run_of(options: dict | None) -> object | None:
    """The run in some model_options, or in the arguments of apply_model."""
    return ((options or {}).get("transformer_options") or {}).get(RUN_KEY)
