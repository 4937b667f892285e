"""The guided rows of ComfyUI's own model call, run once for both: the prediction, and the features with their gradient.

The private pass repeats the first part of the conditional rows' forward. Here those rows are taken out of ComfyUI's
batch and run on the private tree, with gradients as far as the feature block and without after it; the other rows go
their ordinary way. Rows run apart round differently than in one batch, so the prediction is not bit-equal to a plain
one's, as it is with the other passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..backbone.tensors import some_rows
from .conditionings import Lists, carriers
from .passes import Passes
from .recorder import KEY, Recorder
from .reference_attention import KEY as ATTENTION_KEY

PLAIN_ARGUMENTS = ("c_concat", "c_crossattn", "control", "transformer_options", "y")
"""What apply_model gets for the models that are guided; with anything else rows are not told apart."""


@dataclass(frozen=True, eq=False)
class SharedCall:
    """The calls of one prediction. x: [B, C, H, W] noisy at sigma [B], which is `at`."""

    passes: Passes
    recorder: Recorder
    lists: Lists
    x: torch.Tensor
    sigma: torch.Tensor
    at: float

    def __call__(self, proceed: Callable, x: torch.Tensor, t: torch.Tensor, named: dict) -> torch.Tensor:
        """One of ComfyUI's own calls, in which the guided rows are run with a gradient and kept for the guided step.
        Where that fails and can be helped, an ordinary call, and the guided step has its own."""
        if not self.passes.may_share or not may_split(named):
            return proceed(x, t, named)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                own = self._run_rows(self.x.clone(), self.sigma.clone())
            return split_call(proceed, x, t, named, own) if own else proceed(x, t, named)
        except RuntimeError as error:
            if self.passes.answer(error) is None:
                raise
        self.passes.recover()  # not in the handler, whose traceback holds the failed pass
        return proceed(x, t, named)

    def _run_rows(self, x: torch.Tensor, sigma: torch.Tensor) -> dict[int, torch.Tensor]:
        """Predictions of the guided rows of the call just recorded, by place in its batch."""
        own = {}
        for carrier in carriers(self.lists, x, self.at):
            uuid, recorded = carrier.cond["uuid"], self.recorder.rows_of(carrier.cond)
            here = recorded is not None and recorded.call is self.recorder.calls[-1]
            if here and carrier.part is not None and uuid not in self.passes.shared:
                own[recorded.place] = self.passes.share(carrier, recorded, x, sigma)
        return own


def may_split(named: dict) -> bool:
    """Whether a call's rows can be run apart: no argument of an unknown kind, no other pack around the model, which
    would see half a batch, and no work of several cards, for this call's may be another than the guided rows'."""
    if "multigpu_thread_device" in named["transformer_options"]:
        return False
    if any(value is not None and name not in PLAIN_ARGUMENTS for name, value in named.items()):
        return False
    wrappers = named["transformer_options"].get("wrappers", {})
    around = [key for kind in ("apply_model", "diffusion_model") for key in wrappers.get(kind, {})]
    return not set(around) - {KEY, ATTENTION_KEY}


def split_call(
    proceed: Callable,
    x: torch.Tensor,
    t: torch.Tensor,
    named: dict,
    own: dict[int, torch.Tensor],
) -> torch.Tensor:
    """The whole batch's prediction [N, C, H, W]: `own` holds some conditionings' rows by their place in the batch, and
    `proceed` (x, t, named) is asked for the others."""
    options = named["transformer_options"]
    places = len(options["uuids"])
    rows = len(x) // places
    others = [place for place in range(places) if place not in own]
    chunks = {place: value.to(x.dtype) for place, value in own.items()}
    if others:
        parts = [slice(place * rows, (place + 1) * rows) for place in others]
        own_lists = {name: [options[name][place] for place in others] for name in ("uuids", "cond_or_uncond")}
        arguments = {n: some_rows(value, parts, len(x)) for n, value in named.items() if n != "transformer_options"}
        arguments["transformer_options"] = options | own_lists
        result = proceed(*some_rows([x, t], parts, len(x)), arguments)
        chunks |= dict(zip(others, result.split(rows), strict=True))
    return torch.cat([chunks[place] for place in range(places)])
