"""A handful of the matrix's cells, every mode among them; `python run.py bench matrix` is the whole table."""

from __future__ import annotations

import argparse
from functools import partial
from itertools import chain, cycle, islice, product, repeat

import pytest
import shallow
from omniportrait import environment
from omniportrait.lab.bench import cells as _cells
from omniportrait.lab.bench import matrix
from omniportrait.lab.testbed import small
from omniportrait.sampling import gradient as gradient_module

SAMPLERS = ("euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "heun", "ddim", "lcm", "uni_pc")
"""Those that people use."""


def handful() -> list[_cells.Cell]:
    """The fewest cells that hold every mode, every scheduler, every weight type, each pass in each family, and the
    samplers that people use. Half precision is slow on a CPU, so each type comes once; test_weights.py has the rest."""
    columns = _cells.columns()
    count = max(len(columns["mode"]), len(columns["scheduler"]), len(SAMPLERS))
    types = [name for name in _cells.DTYPES if name != "fp32"]
    passes = [name for name in columns["guided_pass"] for _ in _cells.FAMILIES]
    each = zip(
        cycle(SAMPLERS),
        cycle(columns["scheduler"]),
        cycle(columns["mode"]),
        cycle(_cells.FAMILIES),
        chain(types, repeat("fp32")),
        cycle(passes),
    )
    return [_cells.Cell(*values) for values in islice(each, count)]


CELLS = handful()
STEPS = {"bf16": 2, "fp16": 2}
"""Of a run in such a cell, else 3; the table has 4. The last of them is inside the window, which is what it takes."""


@pytest.fixture
def small_cells(monkeypatch):
    """Models of fewer layers, one noise of the reference, and three steps a run."""
    monkeypatch.setattr(small, "SD15", shallow.SD15)
    monkeypatch.setattr(small, "SDXL", shallow.SDXL)
    monkeypatch.setattr(_cells, "guide", partial(_cells.guide, ensemble=1))
    monkeypatch.setattr(_cells, "STEPS", 3)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.key)
def test_cell(vae, cell, small_cells, monkeypatch):
    """Bit-equal at strength 0, deterministic on a fresh model, finite, guided, and plain afterwards as before.

    On the ComfyUI that is pinned the plain run works in each of these cells: where it fails, what failed is the check
    itself. Another ComfyUI (COMFYUI_PATH) may have samplers that fail by themselves, and that is not ours to mend.
    """
    monkeypatch.setattr(_cells, "STEPS", STEPS.get(cell.dtype, 3))
    result = _cells.try_cell(cell, vae)
    if result.status == "core" and matrix.core_version() != environment.COMFYUI_VERSION:
        pytest.skip(f"this ComfyUI's own run without RB-Guidance fails: {result.why}")
    assert result.status == "ok", result.why


def test_a_plain_run_that_fails_is_excused_on_another_core_alone(vae, small_cells, monkeypatch):
    def no_mode(model, cell):
        raise ValueError("the harness is broken")

    monkeypatch.setitem(_cells.MODES, CELLS[0].mode, no_mode)
    monkeypatch.setattr(matrix, "core_version", lambda: environment.COMFYUI_VERSION)
    with pytest.raises(AssertionError, match="the harness is broken"):
        test_cell(vae, CELLS[0], None, monkeypatch)
    monkeypatch.setattr(matrix, "core_version", lambda: "99.0")
    with pytest.raises(pytest.skip.Exception, match="the harness is broken"):
        test_cell(vae, CELLS[0], None, monkeypatch)


def test_the_cells_hold_every_sampler_mode_scheduler_and_weight_type():
    assert {cell.sampler for cell in CELLS} == set(SAMPLERS)
    assert {cell.mode for cell in CELLS} == set(_cells.MODES)
    assert {cell.scheduler for cell in CELLS} == set(_cells.columns()["scheduler"])
    assert {cell.dtype for cell in CELLS} == set(_cells.DTYPES)
    passes = _cells.columns()["guided_pass"]
    assert {(cell.family, cell.guided_pass) for cell in CELLS} == set(product(_cells.FAMILIES, passes))


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["simple", "sgm_uniform", "beta"])
def test_dpm_fast_comes_into_the_window(vae, scheduler, small_cells):
    """It goes its own way between the schedule's ends; 4 steps of these never come there. The others end lower."""
    assert trace_of(_cells.Cell("dpm_fast", scheduler, "txt2img", "sd15", "fp32"), vae).steps


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_picture_that_stays_unguided_is_told(vae, small_cells, monkeypatch):
    """A cell in which one of a run's two guided calls found no face is ok, and says so, on the page too."""
    answers = cycle(["no face found", None])
    monkeypatch.setattr(gradient_module, "failure", lambda *_: next(answers))
    cell = _cells.Cell("euler", "karras", "txt2img", "sd15", "fp32")
    result = _cells.try_cell(cell, vae)
    assert result.status == "ok" and result.why == "unguided 1 times because no face found"
    assert f"- {cell.key}: {result.why}" in matrix.page([cell], {cell.key: result}, "here")


@pytest.mark.parametrize("changed", ["sampling/session.py", "models/faces/crop.py", "nodes/schema.py"])
def test_results_belong_to_the_code_that_made_them(changed, tmp_path, monkeypatch):
    for folder in matrix.SOURCES:
        (tmp_path / folder).mkdir(parents=True)
    for name in ("sampling/session.py", "models/faces/crop.py", "nodes/schema.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1")
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    where, file = matrix.surroundings(), tmp_path / "results.jsonl"
    cell = CELLS[0]
    monkeypatch.setattr(_cells, "try_cell", lambda *_: _cells.Result("ok", "", 1, 0.1))
    matrix.work([cell], file, where)
    assert set(matrix.known_results(file, matrix.surroundings())) == {cell.key}
    (tmp_path / changed).write_text("x = 2")
    assert not matrix.known_results(file, matrix.surroundings())


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Part 1/2 and so on of a table of seven cells, as `bench matrix --part` runs it: its exit status. `tried` gets the
    keys in order; `status` has what is to come of a cell, ok by default; `during` is called with each key."""
    calls = argparse.Namespace(tried=[], status={}, during=lambda key: None, page=tmp_path / "page.md")

    def fake(cell, vae):
        calls.tried.append(cell.key)
        calls.during(cell.key)
        return _cells.Result(calls.status.get(cell.key, "ok"), "", 1, 0.1)

    def part(text: str) -> int:
        options = {"part": matrix.part_of(text), "results": tmp_path / "r.jsonl", "page": calls.page, "smoke": False}
        return matrix.carry_out(CELLS[:7], argparse.Namespace(**options))

    monkeypatch.setattr(_cells, "try_cell", fake)
    calls.part, calls.keys = part, [cell.key for cell in CELLS[:7]]
    return calls


def test_parts_that_start_at_different_times_try_each_cell_once(table, capsys):
    """The second part starts, and ends, while the first is at its second cell: no cell twice, none left out."""

    def second_part(key: str) -> None:
        if key == table.keys[2]:
            table.during = lambda key: None
            assert table.part("2/2") == 0
            assert "the whole table: 4 of 7 cells tried, 0 broken, 3 UNTRIED" in capsys.readouterr().out
            assert not table.page.exists()

    table.during = second_part
    assert table.part("1/2") == 0
    assert sorted(table.tried) == sorted(table.keys)
    assert "7 of 7 cells tried: 7 ok" in table.page.read_text()
    assert table.part("1/1") == 0 and len(table.tried) == 7


def test_a_part_ends_with_1_for_a_broken_cell_of_its_own_and_the_whole_run_for_any(table):
    table.status[table.keys[0]] = "broken"
    assert table.part("1/2") == 1
    assert table.part("2/2") == 0
    assert table.part("1/1") == 1 and table.tried.count(table.keys[0]) == 2  # what was broken is tried again
    table.status.clear()
    assert table.part("1/1") == 0 and table.tried.count(table.keys[0]) == 3


def test_a_run_that_leaves_a_cell_untried_ends_with_1(table, monkeypatch, capsys):
    work = matrix.work
    monkeypatch.setattr(matrix, "work", lambda todo, *others: work(todo[:-2], *others))
    assert table.part("1/1") == 1
    assert "this part: 5 of 7 cells tried, 0 broken, 2 UNTRIED" in capsys.readouterr().out
    assert not table.page.exists()


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_a_part_that_does_not_exist_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=text):
        matrix.part_of(text)


@pytest.mark.slow
def test_a_broken_cell_is_told(vae, small_cells, monkeypatch):
    """The check itself: a guidance that does nothing, and one that leaks into plain runs, are not ok."""
    monkeypatch.setattr(_cells, "STEPS", 2)
    cell = _cells.Cell("euler", "simple", "txt2img", "sd15", "fp32")
    guide = _cells.guide
    monkeypatch.setattr(_cells, "guide", lambda model, vae, **settings: guide(model, vae, **settings, u=0.0))
    idle = _cells.try_cell(cell, vae)
    assert idle.status == "broken" and "no call was guided" in idle.why and "is the plain one" in idle.why

    def leaky(model, vae, **settings):
        patched, traces = guide(model, vae, **settings)
        if settings["strength"]:
            model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 1.01)
        return patched, traces

    monkeypatch.setattr(_cells, "guide", leaky)
    leaked = _cells.try_cell(cell, vae)
    assert leaked.status == "broken" and "not bit-equal to the one before" in leaked.why
