"""What a guided model did in its last runs: the small traces that RB-Guidance Report reads after sampling.

They are an attachment of the guided clone, which its own clones share, so a model that another node has patched further
reports, too. Nothing of a session is among them, and they go when ComfyUI lets go of the model.
"""

from __future__ import annotations

from collections import deque

import torch

from .trace import Trace

KEPT = 4
"""Runs that are remembered: more samplers behind one guided model are rare."""
MARK = 256
"""Numbers of a result by which it is known again."""
ATTACHMENT = "omniportrait_runs"


class Runs:
    """The last KEPT traces of one guided model, each with a mark of the latent that its run made."""

    def __init__(self) -> None:
        self._kept: deque[tuple[Trace, torch.Size, torch.Tensor]] = deque(maxlen=KEPT)

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, trace: Trace, result: torch.Tensor) -> None:
        """A run has ended with the latent [B, C, h, w]."""
        self._kept.append((trace, result.shape, _mark(result)))

    def of(self, samples: torch.Tensor) -> Trace | None:
        """The trace of the run that made a latent; of the last one where other nodes have changed it since; None before
        the first. Cores may round what a sampler gives, so marks are compared as such."""
        mark = _mark(samples)
        for trace, shape, kept in reversed(self._kept):
            if shape == samples.shape and torch.allclose(mark, kept, rtol=1e-2, atol=1e-2, equal_nan=True):
                return trace
        return self._kept[-1][0] if self._kept else None


def runs_of(model: object) -> Runs | None:
    """Those of a MODEL; None where nothing guides it."""
    return model.get_attachment(ATTACHMENT)


def _mark(samples: torch.Tensor) -> torch.Tensor:
    """MARK numbers spread over a latent, on the CPU."""
    places = torch.linspace(0, samples.numel() - 1, MARK, dtype=torch.float64).long()
    return samples.detach().flatten()[places.to(samples.device)].float().cpu()


def report_of(model: object, samples: torch.Tensor) -> tuple[str, Trace]:
    """A line for people and the trace of the run that made a latent; an empty trace where there was none."""
    runs = runs_of(model)
    if runs is None:
        return "RB-Guidance: off, because this model has none or its strength is 0", Trace()
    trace = runs.of(samples)
    if trace is None:
        return "RB-Guidance: nothing known, because no sampler has used this model yet; queue it again", Trace()
    return trace.summary(), trace
