"""A unit may be done twice, die anywhere and be done by two at once: each row is in the ledger once."""

from __future__ import annotations

import errno
import io
import json
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omniportrait.lab.make.web import jpeg, portrait
from omniportrait.training.data.index import BROKEN_PICTURE, BadSample
from omniportrait.training.dataset import ledger, reasons
from omniportrait.training.dataset import unit as units
from omniportrait.training.dataset.folder import Folder, sweep
from omniportrait.training.dataset.look import Sample
from omniportrait.training.dataset.optout import OptOut
from omniportrait.training.dataset.recipe import Recipe, read
from omniportrait.training.dataset.select import plan
from omniportrait.training.dataset.unit import Attempt, NetworkLost, members, work
from PIL import Image

NAME = "unit-00000-00000"


class Died(BaseException):
    """A process that ends, as far as a test can have it in its own."""


class Looker:
    """Keeps what it is shown; ends at the picture of one path."""

    face_seconds = 0.0

    def __init__(self, deadly: str = "") -> None:
        self.deadly = deadly
        self.seen: list[str] = []

    def __call__(self, row: dict, content: bytes) -> Sample:
        self.seen.append(row["url"])
        if self.deadly and row["url"].endswith(self.deadly):
            raise Died
        return Sample({"phash": 1}, {"jpg": content, "json": b"{}"})


@pytest.fixture
def folder(web, tmp_path, planned):
    rows = [{"url": f"{web.home}/portrait/{n}", "text": "a woman"} for n in range(6)]
    return planned(tmp_path, rows, fetch__private=web.place, fetch__robots=False)


def attempts(folder: Folder) -> list[Path]:
    return sorted(folder.work.glob("*/*.tar"))


def samples_of(folder: Folder) -> dict[int, dict[str, bytes]]:
    """By uid, what lies where the ledger says."""
    found = {}
    for entry in ledger.read(folder.ledger(NAME)):
        if entry["tar"]:
            content = (folder.work / "00000" / entry["tar"]).read_bytes()
            found[entry["uid"]] = dict(members(content[entry["offset"] : entry["offset"] + entry["length"]]))
    return found


def test_every_row_is_in_the_ledger_once_and_its_sample_where_it_says(folder, web, monkeypatch):
    monkeypatch.setattr(units, "looker", lambda recipe: Looker())
    assert work(str(folder.root), NAME) == {"kept": 6}
    entries = ledger.read(folder.ledger(NAME))
    assert [entry["uid"] for entry in entries] == [row["uid"] for row in ledger.read(folder.unit(NAME))]
    for entry in entries:
        seed = int(entry["url"].rpartition("/")[2])
        assert samples_of(folder)[entry["uid"]] == {"jpg": jpeg(portrait(seed)), "json": b"{}"}
    assert not list(folder.work.glob("*/.*")) and not list(folder.work.glob("*/*.hand"))


def test_a_unit_that_is_done_is_not_done_again(folder, monkeypatch):
    looker = Looker()
    monkeypatch.setattr(units, "looker", lambda recipe: looker)
    work(str(folder.root), NAME)
    assert work(str(folder.root), NAME) == {"kept": 6} and len(looker.seen) == 6


def test_a_picture_that_kills_its_reader_twice_is_passed_over(folder, monkeypatch):
    looker = Looker(deadly="/portrait/3")
    monkeypatch.setattr(units, "looker", lambda recipe: looker)
    for _ in range(2):
        with pytest.raises(Died):
            work(str(folder.root), NAME)
        assert not folder.ledger(NAME).exists() and not attempts(folder)
    assert work(str(folder.root), NAME) == {"kept": 5, reasons.CRASHED: 1}
    assert len([url for url in looker.seen if url.endswith("/portrait/3")]) == 2


def test_a_bad_picture_is_no_death(folder, monkeypatch):
    class Refusing(Looker):
        def __call__(self, row, content):
            raise BadSample(reasons.NO_FACE)

    monkeypatch.setattr(units, "looker", lambda recipe: Refusing())
    assert work(str(folder.root), NAME) == {reasons.NO_FACE: 6}


def test_a_full_disk_leaves_the_unit_undone_and_nothing_behind(folder, monkeypatch):
    monkeypatch.setattr(units, "looker", lambda recipe: Looker())

    def full(self, key, files):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(units.Shelf, "add", full)
        with pytest.raises(OSError, match="No space"):
            work(str(folder.root), NAME)
    assert [path.suffix for path in folder.work.glob("*/*")] == [".hand"] and not list(folder.work.glob("*/.*"))
    assert work(str(folder.root), NAME) == {"kept": 6}  # the journal takes no row for deadly


def test_a_lost_network_says_nothing_about_the_rows(web, tmp_path, planned, monkeypatch):
    """The resolver is gone; when it is back, the same unit is done."""
    rows = [{"url": f"http://host{n}.example:{web.port}/portrait/{n}", "text": "a woman"} for n in range(12)]
    folder = planned(tmp_path, rows, fetch__private=web.place, fetch__robots=False)
    monkeypatch.setattr(units, "looker", lambda recipe: Looker())

    def gone(*_, **__):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with monkeypatch.context() as broken:
        broken.setattr(socket, "getaddrinfo", gone)
        with pytest.raises(NetworkLost, match="12 of 12 rows"):
            work(str(folder.root), NAME)
        assert not folder.ledger(NAME).exists() and not attempts(folder)
    here = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", web.port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: here)
    assert work(str(folder.root), NAME) == {"kept": 12}


def test_dead_servers_are_no_lost_network(web, tmp_path, planned, monkeypatch):
    monkeypatch.setattr(units, "looker", lambda recipe: Looker())
    rows = [{"url": f"http://127.0.0.1:9/{n}", "text": "a woman"} for n in range(9)]
    rows += [{"url": f"{web.home}/portrait/{n}", "text": "a woman"} for n in range(11)]
    folder = planned(tmp_path, rows, fetch__private=[web.place, "127.0.0.1:9"], fetch__robots=False)
    assert work(str(folder.root), NAME) == {"kept": 11, reasons.NO_CONNECTION: 9}


def test_what_fails_once_is_asked_for_once_more(web, tmp_path, planned, monkeypatch):
    monkeypatch.setattr(units, "looker", lambda recipe: Looker())
    paths = ("once", "status/500", "status/404")
    rows = [{"url": f"{web.home}/{path}", "text": "a woman"} for path in paths]
    folder = planned(tmp_path, rows, fetch__private=web.place, fetch__robots=False)
    web.hits.clear()
    assert work(str(folder.root), NAME) == {"kept": 1, reasons.SERVER: 1, reasons.GONE: 1}
    assert [web.hits[f"/{path}"] for path in paths] == [2, 2, 1]


def test_lists_of_the_recipe_and_of_forget_are_obeyed(web, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(units, "looker", lambda recipe: Looker())
    folder.opt_out.write_text(f"{web.home}/portrait/2\n")
    assert work(str(folder.root), NAME) == {"kept": 5, reasons.OPTED_OUT: 1}


def test_photographs_of_a_folder_are_read_where_they_lie(tmp_path):
    """One has gone since, one is not fetched as a web address would be."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "ab":
        portrait(ord(name), 400, 200).save(photos / f"{name}.png")
        (photos / f"{name}.txt").write_text("Zoë, a girl")
    folder = Folder(tmp_path / "out")
    plan(folder, [str(photos)], read("photographs"), people=True)
    (photos / "b.png").unlink()
    assert work(str(folder.root), NAME) == {"kept": 1, BROKEN_PICTURE: 1}
    (files,) = samples_of(folder).values()
    described = json.loads(files["json"])
    assert (described["caption"], described["subject"]) == ("Zoë, a girl", "girl")
    assert described["source"].startswith("photos-") and Image.open(io.BytesIO(files["jpg"])).size == (400, 400)


STEPS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["gather", "put", "die"])), max_size=10)


@settings(max_examples=8, deadline=None)
@given(steps=STEPS)
def test_any_interleaving_of_attempts_gives_each_row_once(tmp_path_factory, metadata_once, steps):
    """Four attempts that gather, put and die in any order; then the sweep, and one more where none was put."""
    folder = metadata_once(tmp_path_factory.mktemp("any"))
    recipe, living, gathered, tars = read(folder.recipe), {}, set(), 0

    def gather(attempt: Attempt) -> None:
        attempt.gather(2.0)

    for number, step in [*steps, (9, "gather"), (9, "put")]:
        if number == 9 and folder.ledger(NAME).is_file():
            break
        if step == "gather" and number not in living:
            living[number] = quick(folder, recipe)
            gather(living[number])
            gathered.add(number)
            tars += 1
        elif step == "put" and number in gathered:
            living[number].put()
            gathered.discard(number)
        elif step == "die":
            gathered.discard(number)
    assert len(attempts(folder)) == tars
    assert sweep(folder) == tars - 1
    entries = ledger.read(folder.ledger(NAME))
    assert [entry["uid"] for entry in entries] == [row["uid"] for row in ledger.read(folder.unit(NAME))]
    assert {uid: files["jpg"] for uid, files in samples_of(folder).items()} == {
        entry["uid"]: str(entry["uid"]).encode() for entry in entries
    }


@pytest.fixture(scope="module")
def metadata_once(planned, tmp_path_factory):
    """Copies of one planned folder of five rows, which nobody fetches."""
    import shutil

    source = planned(tmp_path_factory.mktemp("once"), [{"url": f"http://x/{n}", "text": "a man"} for n in range(5)])

    def copy(root: Path) -> Folder:
        shutil.copytree(source.root, root, dirs_exist_ok=True)
        return Folder(root)

    return copy


def quick(folder: Folder, recipe: Recipe) -> Attempt:
    """An attempt whose rows are there at once; a sample holds its row's number."""

    class Quick(Attempt):
        async def _everything(self, rows: list[dict]) -> None:
            for row in rows:
                offset, length = self.shelf.add(str(row["uid"]), {"jpg": str(row["uid"]).encode()})
                self._enter(row, {"status": "kept", "tar": self.tar.name, "offset": offset, "length": length})

    return Quick(folder, NAME, recipe, OptOut())
