"""Folders of photographs as people have them: every photograph and caption is used, or counted by reason and named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from omniportrait.models.faces.detector import Backend
from omniportrait.models.faces.face import DetectedFace
from omniportrait.training.commands import shards
from omniportrait.training.data import folder
from omniportrait.training.data.folder import LeftOut, list_photos
from omniportrait.training.dataset import look, photos
from PIL import Image

PIXELS = np.random.default_rng(1).integers(0, 255, (240, 320, 3), np.uint8)


class Told:
    name = "told"

    def detect(self, picture) -> list[DetectedFace]:
        scale = picture.shape[-1] / 320
        marks = ((120, 110), (160, 110), (140, 130), (125, 155), (155, 155))
        return [DetectedFace((100, 80, 180, 180), marks, 0.99).mapped(scale)]


@pytest.fixture(autouse=True)
def one_face(monkeypatch):
    monkeypatch.setattr(look, "choose_backend", lambda *_: Backend(Told(), None))


def put(path: Path, kind: str = "JPEG", caption: str | None = "a woman", text: str = ".txt") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PIXELS).save(path, kind)
    if caption is not None:
        path.with_suffix(text).write_text(caption)


def names(root: Path, people: bool = False) -> tuple[list[str], dict[str, list[str]]]:
    left = LeftOut()
    return [photo.name for photo in list_photos(root, people, left)], left.names


@pytest.mark.parametrize("suffix", [*folder.READABLE, ".JPG", ".JFIF", *folder.FOREIGN, ".AVIF"])
def test_whatever_is_a_photograph_for_its_owner_is_listed(tmp_path, suffix):
    put(tmp_path / f"a{suffix}")
    assert names(tmp_path) == ([f"a{suffix}"], {})


def test_other_files_are_no_photographs(tmp_path):
    put(tmp_path / "a.jpg")
    for name in ("._a.jpg", "._a.txt", ".DS_Store", "a.mp4", "notes.md", "a.npz"):
        (tmp_path / name).write_bytes(b"")
    assert names(tmp_path) == (["a.jpg"], {})


@pytest.mark.parametrize("text", [".txt", ".TXT", ".caption", ".Caption"])
def test_captions_of_either_suffix_in_any_case(tmp_path, text):
    put(tmp_path / "a.jpg", text=text)
    (photo,) = list_photos(tmp_path, False, LeftOut())
    assert photo.caption == "a woman"


def test_captions_without_a_photograph_are_named(tmp_path):
    put(tmp_path / "a.jpg")
    (tmp_path / "b.txt").write_text("a man")
    (tmp_path / "c.caption").write_text("a man")
    lines = [{"file": name, "caption": "a woman"} for name in ("a.jpg", "x/gone.png")]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    listed, left = names(tmp_path)
    assert listed == ["a.jpg"]
    assert left == {folder.NO_PHOTO: ["b.txt", "c.caption", "x/gone.png (captions.jsonl)"]}


def test_linked_folders_are_followed_once(tmp_path):
    root, elsewhere = tmp_path / "in", tmp_path / "bert"
    put(root / "anna" / "1.jpg")
    put(elsewhere / "1.jpg")
    put(tmp_path / "single.jpg", caption=None)
    os.symlink(elsewhere, root / "bert", target_is_directory=True)
    os.symlink(root, elsewhere / "loop", target_is_directory=True)
    os.symlink(root / "anna", root / "aaa", target_is_directory=True)
    os.symlink(tmp_path / "single.jpg", root / "c.jpg")
    os.symlink(tmp_path / "nowhere.jpg", root / "d.jpg")
    listed, left = names(root)
    assert listed == ["anna/1.jpg", "bert/1.jpg", "c.jpg"]
    assert left == {folder.BROKEN_LINK: ["d.jpg"], folder.SAME_FOLDER: ["aaa", "bert/loop"]}
    identities = [photo.identity for photo in list_photos(root, True, LeftOut())]
    assert identities == ["anna", "bert", ""]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is closed to root")
def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    put(tmp_path / "a.jpg")
    (tmp_path / "closed").mkdir(mode=0)
    assert names(tmp_path)[1] == {folder.CLOSED: ["closed"]}


def run(root: Path, capsys) -> str:
    shards.main([str(root / "in"), "--out", str(root / "out"), "--workers", "1"])
    return capsys.readouterr().out


def test_the_command_names_ten_of_a_reason_and_writes_down_all(tmp_path, capsys):
    put(tmp_path / "in" / "good.jpg")
    for number in range(12):
        put(tmp_path / "in" / f"{number:02}.jpg", caption=None)
    (tmp_path / "in" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "in" / "phone.txt").write_text("a woman")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "in" / "broken.txt").write_text("a woman")
    said = run(tmp_path, capsys)
    assert "1 photographs in 1 new shards" in said
    assert f"12  {folder.NO_CAPTION}: {', '.join(f'{n:02}.jpg' for n in range(10))}, …\n" in said
    assert f"1  {photos.FOREIGN_FORMAT}: phone.heic\n" in said and "cannot be read: broken.jpg" in said
    listed = (tmp_path / "out" / photos.LEFT_OUT).read_text().splitlines()
    assert len(listed) == 14 and f"{folder.NO_CAPTION}\t11.jpg" in listed


def test_with_nothing_kept_the_command_fails(tmp_path, capsys):
    put(tmp_path / "in" / "a.jpg", caption="a castle")
    with pytest.raises(SystemExit, match="None of the photographs in .* can be used"):
        run(tmp_path, capsys)
    assert "--subject WORD" in capsys.readouterr().out  # the reason says how to name the subject
    put(tmp_path / "in" / "b.jpg")
    run(tmp_path, capsys)
    run(tmp_path, capsys)  # nothing is new, but there are shards


def test_tags_and_underscores_have_their_noun(tmp_path, capsys):
    for name, text in {"a": "1girl, solo, smile", "b": "1boy, solo", "c": "a_photo_of_a_woman_smiling"}.items():
        put(tmp_path / "in" / f"{name}.png", "PNG", text)
    assert "3 photographs in 1 new shards" in run(tmp_path, capsys)
