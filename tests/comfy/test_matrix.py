"""A handful of the matrix's cells, every mode among them; `python run.py bench matrix` is the whole table."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import pytest
from omniportrait import run

sys.path.insert(0, str(Path(run.__file__).parent / "benchmarks"))

import _cells  # noqa: E402
import matrix  # noqa: E402

CELLS = matrix.cells(matrix.HANDFUL)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.key)
def test_cell(vae, cell):
    """Bit-equal at strength 0, deterministic on a fresh model, finite, guided, and plain afterwards as before."""
    result = _cells.try_cell(cell, vae)
    if result.status == "core":
        pytest.skip(f"ComfyUI's own run without RB-Guidance fails: {result.why}")
    assert result.status == "ok", result.why


def test_the_cells_hold_every_mode_scheduler_and_weight_type():
    assert {cell.mode for cell in CELLS} == set(_cells.MODES)
    assert {cell.scheduler for cell in CELLS} == set(_cells.columns()["scheduler"])
    assert {(cell.family, cell.dtype) for cell in CELLS} == set(product(_cells.FAMILIES, _cells.DTYPES))


@pytest.mark.parametrize("changed", ["guidance/run.py", "models/face/crop.py", "nodes/schema.py"])
def test_results_belong_to_the_code_that_made_them(changed, tmp_path, monkeypatch):
    for name in ("guidance/run.py", "models/face/crop.py", "nodes/schema.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1")
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    where, file = matrix.surroundings(), tmp_path / "results.jsonl"
    cell = CELLS[0]
    monkeypatch.setattr(_cells, "try_cell", lambda *_: _cells.Result("ok", "", 1, 0.1))
    matrix.work([cell], file, where)
    assert set(matrix.known_results(file, matrix.surroundings())) == {cell.key}
    (tmp_path / changed).write_text("x = 2")
    assert not matrix.known_results(file, matrix.surroundings())


def test_a_broken_cell_is_told(vae, monkeypatch):
    """The check itself: a guidance that does nothing, and one that leaks into plain runs, are not ok."""
    cell = _cells.Cell("euler", "normal", "txt2img", "sd15", "fp32")
    guide = _cells.guide
    monkeypatch.setattr(_cells, "guide", lambda model, vae, **settings: guide(model, vae, **settings, u=0.0))
    idle = _cells.try_cell(cell, vae)
    assert idle.status == "broken" and "no call was guided" in idle.why and "is the plain one" in idle.why

    def leaky(model, vae, **settings):
        patched, traces = guide(model, vae, **settings)
        if "strength" not in settings:
            model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 1.01)
        return patched, traces

    monkeypatch.setattr(_cells, "guide", leaky)
    leaked = _cells.try_cell(cell, vae)
    assert leaked.status == "broken" and "not bit-equal to the one before" in leaked.why
