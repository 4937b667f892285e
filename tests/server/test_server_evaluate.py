"""`run.py evaluate` on the embedded model against a real server: a handful of cells, all the way to the table."""

from __future__ import annotations

import json
import shutil

import pytest
import standin_files
from omniportrait.demo.main import link_models
from omniportrait.evaluation import command
from omniportrait.evaluation.cells import Records
from omniportrait.lab.bench import judge
from PIL import Image

WORDS = "--protocol embedded --count 1 --each 1 --method plain --method all --set steps=2".split()


@pytest.fixture
def evaluate(server, tmp_path):
    link_models(server.base)

    def run(*words: str) -> int:
        return command.main([*words, "--server", server.url, "--out", str(tmp_path)])

    return run


def test_from_people_to_the_table(evaluate, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(judge, "RIVALS", 1)
    monkeypatch.setattr(judge, "VIEWS", (1,))  # each is rendered and looked at
    assert evaluate("check", *WORDS) == 0
    told = capsys.readouterr().out
    assert "photo: 2 (Photograph).image" in told and "2 cells, 0 made" in told
    assert evaluate(*WORDS) == 0
    pictures = sorted((tmp_path / "pictures").rglob("*.png"))
    assert [path.relative_to(tmp_path).parts[1] for path in pictures] == ["all", "plain"]
    first, second = (Image.open(path) for path in pictures)
    assert first.size == (256, 256) and first.tobytes() != second.tobytes()
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| plain | 1 | 0 | 0 |" in table and "| all | 1 | 0 | 0 |" in table
    assert Image.open(tmp_path / "sheet.jpg").size == (3 * 192, 22 + 210)
    assert json.loads((tmp_path / "table.json").read_text())["methods"]["plain"]
    before = {path: path.stat().st_mtime_ns for path in pictures}

    # A second call makes nothing. A lost picture comes again, from a server that has it all in its cache.
    content = pictures[1].read_bytes()
    pictures[1].unlink()
    assert evaluate("generate", *WORDS) == 0
    assert pictures[1].read_bytes() == content and pictures[0].stat().st_mtime_ns == before[pictures[0]]
    assert [run["method"] for run in Records(tmp_path / "runs.jsonl")] == ["plain", "all", "plain"]


def test_a_users_own_workflow_and_a_photograph_without_a_face(evaluate, server, tmp_path, capsys):
    """A file in API format as it is in `workflows/api`; one person's photograph cannot be used, which is told."""
    from omniportrait.evaluation.protocol import HERE

    people = tmp_path / "people"
    people.mkdir()
    standin_files.photograph(people / "real.png")
    Image.new("RGB", (256, 256), "grey").save(people / "nobody.png")
    (tmp_path / "prompts.txt").write_text("a {subject} in a forest\n")
    shutil.copy(HERE / "methods" / "omniportrait.json", tmp_path / "mine.json")
    words = [
        "--method",
        str(tmp_path / "mine.json"),
        "--people",
        str(people),
        "--prompts",
        str(tmp_path / "prompts.txt"),
    ]
    words += ["--subject", "woman", "--checkpoint", "omniportrait_demo.safetensors", "--set", "steps=2"]
    words += ["--set", "OmniPortraitPivotConditioning.pivot_encoder=null", "--set", "width=128", "--set", "height=128"]
    assert evaluate("generate", *words) == 0
    made, failed = sorted(Records(tmp_path / "runs.jsonl"), key=lambda run: "error" in run)
    assert made["person"] == "real" and failed["person"] == "nobody"
    assert failed["error"].startswith("OmniPortraitFaceReference: No face was found")
    capsys.readouterr()
    with pytest.raises(SystemExit, match="evaluate: --set KSampler.cfg: no method has such a node"):
        evaluate("generate", *words, "--set", "KSampler.cfg=3")
