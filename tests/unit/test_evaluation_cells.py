"""run.py evaluate without a server: cells, how they are made and judged, tables."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping

import pytest
from api_graphs import graph
from omniportrait.demo.client import PromptError
from omniportrait.evaluation import generate, options, pictures, table
from omniportrait.evaluation.cells import Cell, Records, cells, share
from omniportrait.evaluation.columns.column import Shown
from omniportrait.evaluation.generate import ALIKE, Campaign
from omniportrait.evaluation.protocol import Method, Person, Prompt
from omniportrait.evaluation.score import Scores
from omniportrait.evaluation.workflow import bind


@pytest.fixture
def world(tmp_path) -> Mapping:
    """Two methods, three people, four prompts."""
    people = []
    for name in "xyz":
        (tmp_path / f"{name}.png").write_bytes(name.encode())
        people.append(Person(name, tmp_path / f"{name}.png", "woman"))
    prompts = [Prompt(f"{i:02d}", f"a {{subject}}, {i}") for i in range(4)]
    changed = copy.deepcopy(graph())
    changed["6"]["inputs"]["cfg"] = 3.0
    methods = [Method("one", bind(graph(), {})), Method("two", bind(changed, {}), "{subject} photomaker")]
    return {"methods": methods, "people": people, "prompts": prompts, "images": 1, "seed": 0, "each": 0}


def test_seeds_are_shared_by_methods_and_nothing_else(world):
    made = cells(**world)
    assert len(made) == 24 and len({cell.key for cell in made}) == 24
    assert all(
        one.seed == two.seed and one.prompt == two.prompt for one, two in zip(made[::2], made[1::2], strict=True)
    )
    assert len({cell.seed for cell in made}) == 12 and max(cell.seed for cell in made) < 2**32
    assert [cell.seed for cell in cells(**world | {"methods": world["methods"][::-1]})][1] == made[0].seed
    assert made[1].text == "a woman, 0" and made[1].text_for_method == "a woman photomaker, 0"


def test_people_take_turns_with_the_prompts(world):
    chosen = [(cell.person.id, cell.prompt.id) for cell in cells(**world | {"each": 3})[::2]]
    assert chosen[:6] == [("x", "00"), ("x", "01"), ("x", "02"), ("y", "03"), ("y", "00"), ("y", "01")]


def test_a_cell_changes_with_what_its_picture_depends_on(world, tmp_path):
    first = cells(**world)[0]
    changed = copy.deepcopy(first.method.bound.prompt)
    changed["6"]["inputs"]["steps"] = 21
    other = Cell(Method("one", bind(changed, {})), first.person, first.prompt, 0, 0)
    (tmp_path / "again.png").write_bytes(b"another photograph")
    photo = Cell(first.method, Person("x", tmp_path / "again.png", "woman"), first.prompt, 0, 0)
    named = Cell(Method("other name", first.method.bound), first.person, first.prompt, 0, 0)
    assert len({first.key, other.key, photo.key}) == 3 and named.key == first.key


# Making, against a client that answers from memory


class FakeClient:
    """url as a server's; answers by `picture`, which may raise."""

    def __init__(self, url="http://one", answer=None):
        self.url, self.answer, self.asked = url, answer, []


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    """Makes what is missing of some cells."""

    def asked(self, client, cell):
        client.asked.append(cell)
        return client.answer(cell)

    def make(client, wanted):
        run = Campaign(tmp_path / "out", patience=0.0, retry=False)
        run.make([client], run.missing(wanted))

    monkeypatch.setattr(Campaign, "_asked", asked)
    return make


def test_only_what_is_missing_is_made(world, campaign, tmp_path):
    client, chosen = FakeClient(answer=lambda cell: cell.key.encode()), cells(**world)
    campaign(client, chosen[:5])
    campaign(client, chosen)
    assert client.asked == chosen
    assert all(cell.file(tmp_path / "out").read_bytes() == cell.key.encode() for cell in chosen)


def test_a_picture_with_two_names_is_made_once(world, campaign, tmp_path):
    """As where a sweep comes by the value that a method has."""
    twin = Method("one, again", world["methods"][0].bound)
    client, chosen = (
        FakeClient(answer=lambda cell: cell.key.encode()),
        cells(**world | {"methods": [*world["methods"], twin]}),
    )
    campaign(client, chosen)
    assert [cell.method.name for cell in client.asked] == ["one", "two"] * 12
    assert all(cell.file(tmp_path / "out").read_bytes() == cell.key.encode() for cell in chosen)
    third = Method("one, a third time", world["methods"][0].bound)
    more = cells(**world | {"methods": [*world["methods"], third]})
    assert Campaign(tmp_path / "out", 0.0, False).missing(more) == []
    assert all(cell.file(tmp_path / "out").is_file() for cell in more), "and no server is needed"


def test_a_failure_is_recorded_and_not_tried_again_unasked(world, campaign, tmp_path):
    def refused(cell):
        if cell.person.id == "y":
            raise PromptError("Face Reference: no face")
        return b"picture"

    client, chosen = FakeClient(answer=refused), cells(**world)
    campaign(client, chosen)
    assert len(client.asked) == 24 and len(list((tmp_path / "out").rglob("*.png"))) == 16
    again = [Campaign(tmp_path / "out", 0.0, retry).missing(chosen) for retry in (False, True)]
    assert again[0] == [] and {cell.person.id for cell in again[1]} == {"y"} and len(again[1]) == 8
    errors = [run for run in Records(tmp_path / "out" / "runs.jsonl") if run.get("error")]
    assert {run["error"] for run in errors} == {"Face Reference: no face"} and {run["person"] for run in errors} == {
        "y"
    }


def test_a_server_at_which_everything_fails_is_given_up(world, campaign, monkeypatch):
    """Not one method, which is given up alone: each has made a portrait before."""
    monkeypatch.setattr(generate, "IN_A_ROW", 6)
    answers = iter([b"picture"] * 4)

    def broken(cell):
        if (content := next(answers, None)) is None:
            raise PromptError("no such file")
        return content

    client = FakeClient(answer=broken)
    with pytest.raises(SystemExit, match="6 portraits in a row failed"):
        campaign(client, cells(**world))
    assert len(client.asked) == 10


def test_a_method_that_cannot_run_is_given_up_and_the_other_goes_on(world, campaign):
    def refused(cell):
        if cell.method.name == "two":
            raise PromptError("no such node")
        return b"picture"

    client = FakeClient(answer=refused)
    campaign(client, cells(**world))
    tried = [cell.method.name for cell in client.asked]
    assert tried.count("two") == ALIKE and tried.count("one") == 12


def test_an_answer_that_is_none_of_comfyuis_is_a_failure(world, campaign, tmp_path, capsys):
    def strange(cell):
        return json.loads("<html>") if cell.person.id == "x" else b"picture"

    campaign(FakeClient(answer=strange), cells(**world))
    errors = {run["error"] for run in Records(tmp_path / "out" / "runs.jsonl") if run.get("error")}
    assert len(errors) == 1 and "http://one is none that ComfyUI gives" in errors.pop()
    assert "8 failed; --retry-errors" in capsys.readouterr().out


def test_a_server_that_is_gone_stops_the_run(world, campaign):
    def gone(cell):
        raise ConnectionRefusedError("refused")

    with pytest.raises(SystemExit, match="http://one does not answer .*goes on where it was"):
        campaign(FakeClient(answer=gone), cells(**world))


# The table


class Judge:
    """A column with a value for each person; `z` has no face."""

    key = "judge-1"
    shown = (Shown("face", "face"), Shown("sim", "SIM", factor=100, of_face=True))

    def __init__(self):
        self.seen = []

    def __call__(self, cell, portrait, album):
        self.seen.append(cell)
        value = {"x": 0.4, "y": 0.6, "z": None}[cell.person.id] + 0.1 * (cell.method.name == "two") if (
            cell.person.id != "z"
        ) else None  # fmt: skip
        return {"face": float(value is not None), "sim": value}


class Album:
    def open(self, file):
        return None


def test_zeros_and_faces_only(world, campaign, tmp_path, monkeypatch):
    chosen, out, judge = cells(**world), tmp_path / "out", Judge()
    campaign(FakeClient(answer=lambda cell: b"picture"), chosen[:-1])
    scores = Scores(out)
    scores.judge([lambda: judge], chosen, Album())
    scores.save()
    results = table.results_of(chosen, scores, out)
    zeros, alone = (table.mean_of(results.rows["one"], key) for key in ("sim", "sim, faces"))
    assert zeros.mean == pytest.approx(1 / 3) and zeros.people == 3
    assert alone.mean == pytest.approx(0.5) and alone.people == 2
    assert results.counts == {"one": (12, 0, 0, 4), "two": (11, 0, 1, 3)}
    assert "| one | 0.67 | 33.33 | 50.00 |" in table.markdown(results, "one", []), "three people give no interval"
    monkeypatch.setattr(table, "LEAST", 2)
    text = table.markdown(results, "one", ["a foot."])
    assert "| one | 0.67 [0.00, 1.00] | 33.33 [0.00, 60.00] | 50.00 [40.00, 60.00] |" in text
    gained = next(line for line in text.splitlines() if line.startswith("| two | +0.00"))
    assert gained.endswith("| **+10.00** [+10.00, +10.00] |")
    assert "one,SIM," in table.as_csv(results) and text.rstrip().endswith("a foot.")
    again = Judge()
    Scores(out).judge([lambda: again], chosen, Album())
    assert again.seen == [] and len(judge.seen) == 23
    kept = Scores(out)
    kept.recall()
    assert table.results_of(chosen, kept, out) == results, "the table is made again without a judge"


def test_a_table_of_nothing_judged_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="nothing is judged in .* `score` first"):
        Scores(tmp_path).recall()


class OfSets:
    """A judge of all portraits of a method: how many there are, and of whom, with an interval for one of the two."""

    key = "sets-1"
    shown = (Shown("fid", "FID", -1), Shown("kid", "KID", -1, 10))

    def __call__(self, files, people):
        return {"fid": len(files), "kid": len(set(people)), "kid low": 1.0, "kid high": 5.0}


def test_columns_of_whole_sets_are_judged_anew_where_a_portrait_is_added(world, campaign, tmp_path, monkeypatch):
    chosen, out = cells(**world), tmp_path / "out"
    campaign(FakeClient(answer=lambda cell: b"picture"), chosen[:-2])
    scores = Scores(out)
    scores.judge([Judge], chosen, Album())
    scores.judge_sets([OfSets], chosen)
    text = table.markdown(table.results_of(chosen, scores, out), "one", [])
    assert "| one | 0.67 | 33.33 | 50.00 | 11.00 | 30.00 |" in text, "three people give no interval"
    monkeypatch.setattr(table, "LEAST", 2)
    results = table.results_of(chosen, scores, out)
    assert "| 11.00 | 30.00 [10.00, 50.00] |" in table.markdown(results, "one", [])
    lines = table.as_csv(results).splitlines()
    assert "one,FID,11,,," in lines and "one,KID,30,10,50,3" in lines
    campaign(FakeClient(answer=lambda cell: b"picture"), chosen)
    assert Scores(out).of_methods(chosen) == {} and scores.of_methods(chosen) == {}
    scores.judge_sets([OfSets], chosen)
    assert scores.of_methods(chosen)["one"]["fid"] == 12


def test_shares_are_whole_pairs_and_make_up_everything(world):
    everything = cells(**world)
    parts = [share(everything, number, 3) for number in (1, 2, 3)]
    assert [len(part) for part in parts] == [8, 8, 8]
    assert {cell.key for part in parts for cell in part} == {cell.key for cell in everything}
    for part in parts:
        assert [cell.seed for cell in part[::2]] == [cell.seed for cell in part[1::2]]
    for wrong in ("0/2", "3/2", "2", "1/0"):
        with pytest.raises(argparse.ArgumentTypeError, match="should read 2/4"):
            options.part(wrong)
    assert options.part("2/4") == (2, 4)


def test_the_curve_needs_a_prompt_and_a_likeness(tmp_path):
    """Two settings joined, one method beside them; the axes are in the columns' own units."""
    shown = [Shown("clip_t", "CLIP-T", factor=100), Shown("sim", "SIM", factor=100, of_face=True)]
    rows = {name: [{"person": p, "prompt": "0", "clip_t": 0.2 + shift, "sim": 0.6 - shift} for p in "xy"]
            for name, shift in (("a 0", 0.0), ("a 1", 0.05), ("plain", 0.1))}  # fmt: skip
    results = table.Results(rows, {}, {}, shown, [], {}, [])
    (axes,) = pictures.curve(results, ["a 0", "a 1"], tmp_path / "curve.png").axes
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [pytest.approx([20, 60]), pytest.approx([25, 55])]
    assert sorted(text.get_text() for text in axes.texts) == ["a 0", "a 1", "plain"]
    assert axes.get_xlabel() == "CLIP-T (prompt)" and axes.get_ylabel() == "SIM (likeness)"
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    without = table.Results(rows, {}, {}, shown[1:], [], {}, [])
    assert not pictures.curve(without, ["a 0"], tmp_path / "none.png") and not (tmp_path / "none.png").exists()
