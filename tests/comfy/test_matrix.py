"""A handful of the matrix's cells that no other test has; `python run.py bench matrix` is the whole table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from omniportrait import run

sys.path.insert(0, str(Path(run.__file__).parent / "benchmarks"))

import _cells  # noqa: E402

CELLS = [
    _cells.Cell("euler_cfg_pp", "beta", "hires second pass", "sd15", "fp32"),
    _cells.Cell("res_multistep", "kl_optimal", "two people", "sd15", "fp8"),
    _cells.Cell("seeds_2", "exponential", "ControlNet", "sdxl", "bf16"),
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.key)
def test_cell(vae, cell):
    """Bit-equal at strength 0, deterministic on a fresh model, finite, guided, and plain afterwards as before."""
    result = _cells.try_cell(cell, vae)
    assert result.status == "ok", result.why


def test_a_broken_cell_is_told(vae, monkeypatch):
    """The check itself: a guidance that does nothing, and one that leaks into plain runs, are not ok."""
    cell = _cells.Cell("euler", "normal", "txt2img", "sd15", "fp32")
    guide = _cells.guide
    monkeypatch.setattr(_cells, "guide", lambda model, vae, **settings: guide(model, vae, **settings, u=0.0))
    idle = _cells.try_cell(cell, vae)
    assert idle.status == "broken" and "no call was guided" in idle.why and "is the plain one" in idle.why

    def leaky(model, vae, **settings):
        patched, traces = guide(model, vae, **settings)
        if not settings:
            model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 1.01)
        return patched, traces

    monkeypatch.setattr(_cells, "guide", leaky)
    leaked = _cells.try_cell(cell, vae)
    assert leaked.status == "broken" and "not bit-equal to the one before" in leaked.why
