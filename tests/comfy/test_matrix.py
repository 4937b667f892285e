"""A handful of the matrix's cells, every mode among them; `python run.py bench matrix` is the whole table."""

from __future__ import annotations

import sys
from itertools import cycle, product
from pathlib import Path

import pytest
import small
from omniportrait import run
from omniportrait.guidance import gradient as gradient_module

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


@pytest.mark.parametrize("scheduler", [name for name in _cells.columns()["scheduler"] if name not in _cells.LATE])
def test_dpm_fast_comes_into_the_window(vae, scheduler):
    """It goes its own way between the schedule's ends; 4 steps of simple, sgm_uniform and beta never come there."""
    assert trace_of(_cells.Cell("dpm_fast", scheduler, "txt2img", "sd15", "fp32"), vae).steps


def test_the_guided_face_lies_in_the_inpainted_part(vae):
    """Without a region this cell finds it at the picture's edge, each time, where core keeps the old picture."""
    steps = trace_of(_cells.Cell("dpmpp_2m_sde_gpu", "karras", "inpaint", "sdxl", "bf16"), vae).steps
    assert steps and all(step.mask[2:14, 3:13].any() for step in steps)


def trace_of(cell, vae):
    """The trace of a cell's guided run."""
    model = getattr(small, cell.family)(**_cells.DTYPES[cell.dtype])
    patched, traces = _cells.guide(model, vae)
    _cells.MODES[cell.mode](patched, cell)
    (trace,) = traces
    return trace


def test_a_picture_that_stays_unguided_is_told(vae, monkeypatch):
    """A cell in which one of a run's two guided calls found no face is ok, and says so, on the page too."""
    answers = cycle(["no face found", None])
    monkeypatch.setattr(gradient_module, "failed", lambda *_: next(answers))
    cell = _cells.Cell("euler", "karras", "txt2img", "sd15", "fp32")
    result = _cells.try_cell(cell, vae)
    assert result.status == "ok" and result.why == "unguided 1 times because no face found"
    assert f"- {cell.key}: {result.why}" in matrix.page([cell], {cell.key: result}, "here")


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
