"""What becomes of bad data, and of sources that cannot be read; no ComfyUI."""

from __future__ import annotations

import http.server
import os
import tarfile
import threading
from collections import Counter
from functools import partial

import numpy as np
import pytest
from made_shards import ENDLESS, encoded, entries_of, opened, sample, write
from omniportrait.training.data import index
from omniportrait.training.data.dataset import read_index, skip_table
from omniportrait.training.data.plan import Slot
from omniportrait.training.settings import Data

BAD = {
    index.NO_PICTURE: sample(without="jpg"),
    index.NO_DESCRIPTION: sample(without="json"),
    index.NO_NOUN: sample(subject="man"),
    index.NO_MASK: sample(without="mask.png"),
    index.NO_BOX: sample(face_box=None),
    index.TWO_FACES: sample(faces=2),
    index.BROKEN_PICTURE: sample() | {"jpg": b"not a picture"},
}
LATER = {
    index.BROKEN_PICTURE: sample() | {"jpg": sample()["jpg"][:900]},
    index.BROKEN_MASK: sample() | {"mask.png": b"not a picture"},
    index.EMPTY_MASK: sample() | {"mask.png": encoded(np.zeros((64, 64), np.uint8))},
}
"""What only shows when a sample is read."""


@pytest.mark.parametrize("reason", BAD)
def test_index_names_what_is_wrong(tmp_path, reason):
    shard = write(tmp_path / "a.tar", [sample(1), BAD[reason], sample(2)])
    assert [entry.problem for entry in entries_of(tmp_path, shard)] == ["", reason, ""]


def test_box_may_reach_over_the_edge(tmp_path):
    (entry,) = entries_of(tmp_path, write(tmp_path / "a.tar", [sample(face_box=[-20, -3.5, 40, 90])]))
    assert entry.problem == ""


@pytest.mark.parametrize("occurrence", ["1", 1.5, None, -1, True, [0], 10**30, ENDLESS])
def test_odd_occurrences_are_named(tmp_path, occurrence):
    (entry,) = entries_of(tmp_path, write(tmp_path / "a.tar", [sample(occurrence=occurrence)]))
    assert entry.problem == index.BAD_OCCURRENCE


@pytest.mark.parametrize(
    "content",
    [
        b"[]", b"{", b'{"caption": 3, "subject": 4}', b'{"caption": "a woman"}', b"\xff", b"null", b"[" * 100_000,
        b'{"caption": "a woman \\ud800", "subject": "woman", "face_box": [0, 0, 9, 9]}',
    ],
)  # fmt: skip
def test_odd_descriptions_are_no_traceback(tmp_path, content):
    (entry,) = entries_of(tmp_path, write(tmp_path / "a.tar", [sample() | {"json": content}]))
    assert entry.problem in (index.NO_DESCRIPTION, index.NO_NOUN)


@pytest.mark.parametrize(
    "box",
    [
        [1, 2, 3], [5, 5, 5, 9], "0 0 9 9", [0, 0, "9", 9], [0, 0, ENDLESS, 9], [-ENDLESS, 0, 9, 9], [0, 0, 9, 10**400],
        [0, 0, float("nan"), 9], [0, 0, 1e9, 1e9], [-65, 0, 9, 9], [70, 8, 90, 40], [8, -30, 40, 0], [0, 0, True, True],
    ],
)  # fmt: skip
def test_odd_boxes_are_no_boxes(tmp_path, box):
    (entry,) = entries_of(tmp_path, write(tmp_path / "a.tar", [sample(face_box=box)]))
    assert entry.problem == index.NO_BOX


def test_noun_is_a_word_of_the_caption_not_a_part_of_one():
    assert index.has_word("A Woman in red", "woman") and index.has_word("an old man.", "old man")
    assert not index.has_word("a mantelpiece", "man") and not index.has_word("a man", " ")


@pytest.mark.parametrize("reason", LATER)
def test_bad_pixels_become_an_empty_sample_that_says_why(tmp_path, reason):
    samples = opened(tmp_path, [sample(), LATER[reason]])
    good, bad = samples[Slot(0, 0, 0)], samples[Slot(1, 0, 1)]
    assert (good.weight, good.problem) == (1.0, "") and (bad.weight, bad.problem) == (0.0, reason)
    assert bad.picture.shape == good.picture.shape and bad.mask.shape == good.mask.shape
    assert bad.face.shape == good.face.shape and not bad.face.any()


def test_shard_that_vanishes_or_shrinks_in_mid_run(tmp_path):
    samples = opened(tmp_path, [sample(), sample(1)])
    assert samples[Slot(1, 0, 0)].problem == ""
    shard = tmp_path / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:2000])
    assert samples[Slot(1, 0, 0)].problem == index.CHANGED_SHARD
    shard.unlink()
    assert samples[Slot(0, 0, 0)].problem == index.BROKEN_SHARD


def test_shard_rewritten_in_mid_run_gives_no_sample_of_another_place(tmp_path):
    """The new samples lie where the index has the old ones, so they would be read without a complaint."""
    people = [sample(i, identity=0) for i in range(2)]
    samples = opened(tmp_path, people, Data(workers=0, reference="identity"))
    assert samples[Slot(0, 0, 0)].problem == ""
    write(tmp_path / "train-000000.tar", people[::-1])
    assert samples[Slot(0, 0, 0)].problem == samples[Slot(1, 0, 0)].problem == index.CHANGED_SHARD


def test_compressed_shards_are_refused_not_misread(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.add(write(tmp_path / "b.tar", [sample()]), "0.jpg")
    assert [entry.problem for entry in entries_of(tmp_path, tmp_path / "a.tar")] == [index.BROKEN_SHARD]


def test_shard_that_could_not_be_read_once_is_tried_again(tmp_path, monkeypatch):
    shard = write(tmp_path / "a.tar", [sample()])

    def fails(*_, **__):
        raise OSError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(index.tarfile, "open", fails)
        assert [entry.problem for entry in entries_of(tmp_path, shard)] == [index.BROKEN_SHARD]
    assert [entry.problem for entry in entries_of(tmp_path, shard)] == [""]


def test_shard_cut_short_keeps_its_first_samples(tmp_path):
    whole = write(tmp_path / "a.tar", [sample(i) for i in range(4)])
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    problems = Counter(entry.problem for entry in entries_of(tmp_path, whole))
    assert problems[""] >= 1 and problems[index.BROKEN_SHARD] >= 1


def test_missing_shard_is_counted(tmp_path):
    assert [e.problem for e in index.load(str(tmp_path / "no.tar"), tmp_path)] == [index.BROKEN_SHARD]


def test_run_over_mostly_bad_data_stops_with_the_table(tmp_path):
    from omniportrait.training.pivot.config import Config

    write(tmp_path / "a.tar", [sample(), BAD[index.NO_MASK], BAD[index.NO_MASK], BAD[index.TWO_FACES]])
    config = Config(out=str(tmp_path), data=Data(shards=(str(tmp_path / "a.tar"),)))
    with pytest.raises(SystemExit, match="3 of 4") as stopped:
        read_index(config)
    assert "2  no face mask" in str(stopped.value) and "1  two faces" in str(stopped.value)


def test_half_bad_data_goes_on(tmp_path):
    from omniportrait.training.pivot.config import Config

    write(tmp_path / "a.tar", [sample(), sample(), BAD[index.NO_MASK]])
    write(tmp_path / "b.tar", [sample(), BAD[index.TWO_FACES]])
    config = Config(out=str(tmp_path), data=Data(shards=(str(tmp_path / "{a,b}.tar"),), min_side=64))
    entries, problems = read_index(config)
    assert len(entries) == 3 and problems == {index.NO_MASK: 1, index.TWO_FACES: 1}
    with pytest.raises(SystemExit, match="3  the picture is too small"):
        read_index(Config(out=str(tmp_path), data=Data(shards=config.data.shards, min_side=65)))


def test_table_lists_the_most_frequent_first():
    lines = skip_table(Counter({"a": 1, "b": 12})).splitlines()
    assert lines[1].split() == ["12", "b"] and lines[2].split() == ["1", "a"]


def test_index_is_kept_and_follows_the_file(tmp_path, monkeypatch):
    shard = write(tmp_path / "a.tar", [sample()])
    assert len(entries_of(tmp_path, shard)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(index, "scan", None)  # would fail if it were called
        assert len(entries_of(tmp_path, shard)) == 1
    write(shard, [sample(), sample(1)])
    assert len(entries_of(tmp_path, shard)) == 2


def test_shards_are_found_in_every_notation(tmp_path):
    names = [write(tmp_path / f"train-00000{i}.tar", [sample()]) for i in range(3)]
    other = write(tmp_path / "held_out-000000.tar", [sample()])
    everything = [str(path) for path in names]
    assert index.expand((str(tmp_path),)) == everything
    assert index.expand((str(tmp_path / "train-*.tar"),)) == everything
    assert index.expand((str(tmp_path / "train-{000000..000002}.tar"),)) == everything
    assert index.expand((str(other), str(names[1]), str(names[1]))) == [str(other), str(names[1])]
    assert index.expand(("https://host/train-{00..01}.tar",)) == [
        "https://host/train-00.tar",
        "https://host/train-01.tar",
    ]
    with pytest.raises(ValueError, match="no shards at"):
        index.expand((str(tmp_path / "x-*.tar"),))


def test_remote_shards_are_the_same_as_local_ones(tmp_path):
    (tmp_path / "server").mkdir()
    local = write(tmp_path / "server" / "a.tar", [sample(1), BAD[index.NO_MASK]])
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "server"))
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        found = index.load(f"{url}/a.tar", tmp_path / "cache")
        missing = index.load(f"{url}/b.tar", tmp_path / "cache")
    finally:
        server.shutdown()
    assert [(e.key, e.problem, e.members) for e in found] == [
        (e.key, e.problem, e.members) for e in entries_of(tmp_path, local)
    ]
    assert found[0].read("jpg") == sample(1)["jpg"]
    assert [entry.problem for entry in missing] == [index.BROKEN_SHARD]


@pytest.mark.skipif(os.name == "nt", reason="POSIX shell")
def test_shards_may_be_the_output_of_a_command(tmp_path):
    for name in ("a-0", "a-1"):
        write(tmp_path / f"{name}.tar", [sample(1)])
    shards = index.expand((f"pipe:cat {tmp_path}/a-{{0..2}}.tar",))
    problems = [[entry.problem for entry in index.load(shard, tmp_path / "cache")] for shard in shards]
    assert problems == [[""], [""], [index.BROKEN_SHARD]]


def test_sources_that_cannot_be_read_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="cannot be read from s3://.*pipe:"):
        index.expand(("s3://bucket/train-{000..001}.tar",))
