"""From metadata to units by DuckDB."""

from __future__ import annotations

import hashlib
import json

import pytest
from omniportrait.training.dataset import ledger, reasons
from omniportrait.training.dataset import select as selecting
from omniportrait.training.dataset.folder import Folder
from omniportrait.training.dataset.recipe import read
from omniportrait.training.dataset.select import plan


def rows_of(folder: Folder) -> list[dict]:
    return [row for name, _ in folder.unit_names() for row in ledger.read(folder.unit(name))]


def number(url: str) -> int:
    """The lower half of the md5, as an independent computation: the last eight bytes, read as DuckDB stores them."""
    return int.from_bytes(hashlib.md5(url.encode()).digest()[8:], "little")


def test_each_address_is_in_one_unit_once_by_its_number(tmp_path, planned):
    addresses = [f"http://host{n % 7}.example/{n}.jpg" for n in range(95)]
    folder = planned(tmp_path, [{"url": url, "text": "a man"} for url in addresses], unit=20)
    rows = rows_of(folder)
    assert sorted(row["url"] for row in rows) == sorted(addresses)
    assert [row["uid"] for row in rows] == sorted(map(number, addresses))
    assert [len(ledger.read(folder.unit(name))) for name, _ in folder.unit_names()] == [20, 20, 20, 20, 15]


def test_many_buckets_hold_the_same_rows_in_the_same_order(tmp_path, planned, monkeypatch):
    rows = [{"url": f"http://x.example/{n}", "text": "a man"} for n in range(200)]
    one = rows_of(planned(tmp_path / "one", rows, unit=1000))
    monkeypatch.setattr(selecting, "BUCKET_ROWS", 30)
    folder = planned(tmp_path / "many", rows, unit=1000)
    assert folder.planned()["buckets"] == 7
    assert [row["uid"] for row in rows_of(folder)] == [row["uid"] for row in one]


def test_the_best_caption_of_an_address_stays(tmp_path, planned):
    texts = ["a castle with a long caption indeed", "a man", "a man in a boat", "a man in a coat"]
    folder = planned(tmp_path, [{"url": "http://x/", "text": text} for text in texts], caption__model="blip")
    assert [row["text"] for row in rows_of(folder)] == ["a man in a boat"]


def test_the_funnel_counts_every_row(tmp_path, metadata):
    rows = [
        {"URL": f"http://{host}/", "TEXT": text, "WIDTH": width, "unsafe": unsafe}
        for host, text, width, unsafe in (
            ("a", "a man", 600, 0.1), ("a", "a man", 600, None), ("b", "a man", 500, 0.1), ("c", "a man", 600, 0.5),
            ("d", "a castle", 600, 0.1), ("e", "a mother and her CHILD", 600, 0.1), ("f", None, 600, 0.1),
            ("g", "a man", None, 0.1),
        )
    ]  # fmt: skip
    recipe = read(
        "plain", {"columns.url": "url", "columns.text": "text", "columns.unsafe": "unsafe", "where": "width > 512"}
    )
    planned = plan(Folder(tmp_path), [str(metadata(rows))], recipe)
    assert planned["read"] == 8 and planned["rows"] == 1 and planned["units"] == 1
    assert {reason: planned[reason] for reason in (reasons.NO_NOUN, reasons.CHILD, "unsafe", "selected")} == {
        reasons.NO_NOUN: 2, reasons.CHILD: 1, "unsafe": 1, "selected": 2,
    }  # fmt: skip
    assert planned["filtered out by `where`"] == 2


def test_another_recipe_or_other_metadata_is_refused(tmp_path, planned):
    rows = [{"url": "http://a/", "text": "a man"}]
    folder = planned(tmp_path, rows)
    before = folder.recipe.read_bytes()
    with pytest.raises(ValueError, match="least: 513` there, `least: 600` now"):
        planned(tmp_path, rows, picture__least=600)
    with pytest.raises(ValueError, match="other metadata"):
        planned(tmp_path, rows)  # the same rows in another file
    assert folder.recipe.read_bytes() == before


def test_an_interrupted_plan_goes_on(tmp_path, metadata, monkeypatch):
    file = str(metadata([{"url": f"http://x/{n}", "text": "a man"} for n in range(50)]))
    recipe, cut = read("plain", {"unit": 10}), selecting.cut_bucket

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(selecting, "cut_bucket", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plan(Folder(tmp_path), [file], recipe)
    monkeypatch.setattr(selecting, "cut_bucket", cut)
    assert plan(Folder(tmp_path), [file], recipe)["units"] == 5
    assert len(rows_of(Folder(tmp_path))) == 50


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"columns.url": "address"}, "no column address, but url, text"), ({"where": "wdth > 3"}, "wdth"),
        ({"where": "url IN (SELECT content FROM read_text('/etc/hostname'))"}, "hostname"),
        ({"where": "true) TO '/dev/shm/x' --"}, "DuckDB cannot select"),
    ],
)  # fmt: skip
def test_what_a_recipe_cannot_ask_for(tmp_path, metadata, settings, told):
    file = str(metadata([{"url": "http://a/", "text": "a man"}]))
    with pytest.raises(ValueError, match=told):
        plan(Folder(tmp_path), [file], read("plain", settings))


def test_names_and_texts_with_quotes(tmp_path, metadata):
    file = metadata([{"url": "http://a/'x\"", "text": 'a man\'s "hat"'}], 'it\'s a "name"')
    plan(Folder(tmp_path / "o'ut"), [str(file)], read("plain"))
    (row,) = rows_of(Folder(tmp_path / "o'ut"))
    assert (row["url"], row["text"], row["source"]) == ("http://a/'x\"", 'a man\'s "hat"', 'it\'s a "name"')


def test_files_that_are_none(tmp_path):
    (tmp_path / "x.parquet").write_text("no parquet")
    for name, told in (("none", "no metadata at"), ("x.parquet", "cannot be read as parquet")):
        with pytest.raises(ValueError, match=told):
            plan(Folder(tmp_path / "out"), [str(tmp_path / name)], read("plain"))


def test_shipped_recipes_are_read():
    for name in ("plain", "laion", "coyo"):
        assert json.dumps(read(name).where)


def test_a_folder_of_photographs_is_a_source(tmp_path, metadata):
    """Its captions, subjects and people go along."""
    photos = tmp_path / "photos"
    for name, caption in (
        ("a/1.jpg", "a woman"),
        ("a/2.png", ""),
        ("b/1.jpg", "Anna in a park"),
        ("c.jpg", "a castle"),
    ):
        path = photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        path.with_suffix(".txt").write_text(caption)
    (photos / "captions.jsonl").write_text('{"file": "b/1.jpg", "caption": "Anna in a park", "subject": "Anna"}')
    folder = Folder(tmp_path / "out")
    found = plan(folder, [str(photos)], read("photographs"), people=True)
    assert (found["read"], found["rows"], found[reasons.NO_NOUN]) == (4, 2, 2)
    told = {row["path"]: (row["text"], row["subject"], row["identity"]) for row in rows_of(folder)}
    assert told == {str(photos / "a/1.jpg"): ("a woman", None, "a"),
                    str(photos / "b/1.jpg"): ("Anna in a park", "Anna", "b")}  # fmt: skip


def test_metadata_of_the_web_names_no_file_of_this_machine(tmp_path, planned):
    row = {"url": "http://x/", "text": "a man", "path": "/etc/hostname", "subject": "dog", "identity": "somebody"}
    (found,) = rows_of(planned(tmp_path, [row]))
    assert found["path"] is found["subject"] is found["identity"] is None
