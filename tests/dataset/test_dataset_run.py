"""The command as users call it, from metadata to shards."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from omniportrait.lab.make.web import Web
from omniportrait.training.data import index
from omniportrait.training.data.samples import Samples
from omniportrait.training.dataset import reasons
from omniportrait.training.dataset.command import main
from omniportrait.training.dataset.folder import Folder
from omniportrait.training.settings import Data
from runs import entries_of

KINDS = {
    "html": index.BROKEN_PICTURE, "empty": reasons.EMPTY, "bomb": reasons.TOO_MANY_PIXELS, "moving": reasons.MOVING,
    "small": index.SMALL_PICTURE, "strip": reasons.STRIP, "nobody": reasons.NO_FACE, "two": index.TWO_FACES,
    "far": reasons.SMALL_FACE, "turned": "kept", "grey": "kept", "cmyk": "kept", "again": "kept", "copy": "kept",
    "like": "kept", "to/good": "kept", "to/itself": reasons.REDIRECTS, "to/private": reasons.PRIVATE,
    "to/six": reasons.PRIVATE, "to/name": reasons.PRIVATE, "to/mapped": reasons.PRIVATE,
    "to/file": reasons.OTHER_SCHEME, "to/ftp": reasons.OTHER_SCHEME, "status/404": reasons.GONE,
    "status/500": reasons.SERVER, "status/429": reasons.BUSY, "status/204": reasons.MALFORMED, "once": "kept",
    "gzip": reasons.ENCODED, "flood": reasons.TOO_MANY_BYTES,
    "short": reasons.CUT_SHORT, "told": reasons.TOO_MANY_BYTES, "nonsense": reasons.MALFORMED,
    "forbidden/x.jpg": reasons.ROBOTS, "portrait/9?X-Robots-Tag=noai": reasons.OPTED_OUT,
}  # fmt: skip


def written(out: Path, cache: Path) -> list[index.Entry]:
    return [entry for shard in index.expand((str(out / "shards"),)) for entry in index.load(shard, cache)]


def test_from_metadata_to_shards_that_training_reads(web, tmp_path, metadata, dataset, capsys):
    """One process that is started as users do, the others' commands in this one."""
    rows = [{"url": f"{web.home}/{kind}", "text": "a woman in orange"} for kind in KINDS]
    rows += [{"url": f"{web.home}/portrait/{n}", "text": f"a woman, the {n}th"} for n in range(20, 26)]
    rows += [{"url": "http://10.0.0.1/x.jpg", "text": "a man"}, {"url": "ftp://x/y", "text": "a man"}]
    out, web.reached[:] = tmp_path / "out", []
    web.hits.clear()
    settings = (
        f"fetch.private={web.place}",
        "fetch.seconds=60",
        "fetch.most_bytes=4000000",
        "unit=25",
        "fetch.a_host=8",
    )
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["plan", str(metadata(rows)), "--out", str(out), *words]) == 0
    assert "2.8 billion rows" in capsys.readouterr().out
    ran = dataset("run", "--out", out, "--workers", 1)
    assert ran.returncode == 0, ran.stderr
    path = {entry["url"].removeprefix(web.home + "/"): entry["status"] for entry in entries_of(Folder(out))}
    assert {kind: path[kind] for kind in KINDS} == KINDS
    assert path["http://10.0.0.1/x.jpg"] == reasons.PRIVATE and path["ftp://x/y"] == reasons.NOT_WEB
    assert web.reached == []
    main(["pack", "--out", str(out), "--shard-size", "10"])
    funnel = json.loads((out / "funnel.json").read_text())
    assert funnel["run"]["kept"] == 14
    assert funnel["pack"] == {"samples": 12, "copies": 2, "shards": 2, "written": 2}
    check_shards(out, tmp_path / "cache", 12)
    check_again(out, capsys, web)
    check_forget(out, tmp_path, capsys, web)


def check_shards(out: Path, cache: Path, count: int) -> None:
    """As `train pivot-encoder` reads them."""
    entries = written(out, cache)
    assert [entry.key for entry in entries] == [f"{n:07d}" for n in range(count)]
    assert {entry.problem for entry in entries} == {""}
    samples = Samples(entries, [(64, 64)] * count, Data(workers=0), None, 32, 0)
    for number, entry in enumerate(entries):
        box = entry.description()["face_box"]
        mask = samples.mask(entry, number, (0, 0, entry.width, entry.height))
        middle = [int((box[axis] + box[axis + 2]) / 2 / (entry.width, entry.height)[axis] * 8) for axis in (0, 1)]
        assert float(mask[middle[1], middle[0]]) > 0.5 and float(mask[0, 0]) == 0.0


def check_again(out: Path, capsys, web: Web) -> None:
    """What is done is not done again, and the shards stay as they are."""
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    web.hits.clear()
    for words, told in (
        (["run"], "0 units done"), (["pack", "--shard-size", "10"], "of which 0 are new"), (["status"], "2 of 2 units"),
    ):  # fmt: skip
        assert main([*words, "--out", str(out)]) == 0
        assert told in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")} == before and not web.hits


def check_forget(out: Path, tmp_path: Path, capsys, web: Web) -> None:
    """One is gone from shard, work and ledger; the others keep their names and bytes; `pack` does not bring it back."""
    gone, cache = f"{web.home}/portrait/22", tmp_path / "cache"
    (entry,) = (entry for entry in entries_of(Folder(out)) if entry["url"] == gone)
    listed = tmp_path / "gone.txt"
    listed.write_text(f"# by request\n{gone}\n")
    before = {entry.key: (entry.description(), entry.read("jpg")) for entry in written(out, cache)}
    (key,) = (key for key, (described, _) in before.items() if described["uid"] == entry["uid"])
    for count in (1, 0):
        main(["forget", str(listed), "--out", str(out)])
        assert f"{count} samples taken out of the shards, {count} out of the work" in capsys.readouterr().out
    after = {entry.key: (entry.description(), entry.read("jpg")) for entry in written(out, cache)}
    assert after == {name: sample for name, sample in before.items() if name != key}
    assert not any(before[key][1][3000:3500] in path.read_bytes() for path in out.rglob("*.tar"))
    (row,) = (row for row in entries_of(Folder(out)) if row["url"] == gone)
    assert row["status"] == reasons.OPTED_OUT and row["caption"] is row["sha256"] is row["face_box"] is None
    main(["pack", "--out", str(out), "--shard-size", "10"])
    check_shards(out, cache, 11)


@pytest.mark.parametrize(
    "words, told",
    [
        (["run"], "Nothing is planned"), (["pack"], "Nothing is planned"), (["status"], "Nothing is planned"),
        (["plan", "none.parquet"], "no metadata at none.parquet"),
        (["plan", "none.parquet", "--recipe", "x"], "no config x"),
        (["plan", "none.parquet", "--set", "fetch.secs=1"], "fetch.secs is no setting"),
    ],
)  # fmt: skip
def test_one_sentence_says_what_is_wrong(tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=told):
        main([*words, "--out", os.fspath(tmp_path / "out")])
