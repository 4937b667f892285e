"""Shards from a folder of captioned photographs; no ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omniportrait.models.faces.detector import Backend
from omniportrait.models.faces.face import DetectedFace
from omniportrait.training.data import folder, index
from omniportrait.training.data.samples import Samples
from omniportrait.training.dataset import look, photos, reasons
from omniportrait.training.settings import Data
from PIL import Image


def noise(seed: int) -> np.ndarray:
    """A picture 320 wide and 240 high."""
    return np.random.default_rng(seed).integers(0, 255, (240, 320, 3), np.uint8)


class OneFace:
    """A detector that says what it is told; the real one has its own tests."""

    name = "told"

    def __init__(self, *boxes):
        """boxes: x0, y0, x1, y1, and False behind them for a doubtful find."""
        self.boxes = boxes

    def detect(self, picture: torch.Tensor) -> list[DetectedFace]:
        scale = picture.shape[-1] / 320  # photographs below are 320 wide
        return [
            DetectedFace(
                (x0, y0, x1, y1), ((x0 + 20, y0 + 30), (x1 - 20, y0 + 30), (x0 + 40, y0 + 50), (x0 + 25, y0 + 75),
                                   (x1 - 25, y0 + 75)), 0.99, 0.5 if doubtful else 0.97, not doubtful,
            ).mapped(scale)
            for x0, y0, x1, y1, *doubtful in self.boxes
        ]  # fmt: skip


FACE = (100, 80, 180, 180)


def photo(root: Path, name: str, caption: str | None = "a woman, smiling (in red)", pixels=None) -> Path:
    path = root / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(3) if pixels is None else pixels).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


def make(root: Path, monkeypatch, *boxes, **options):
    monkeypatch.setattr(look, "choose_backend", lambda *_: Backend(OneFace(*boxes), None))
    return photos.make_shards(photos.Options(root / "in", root / "out", workers=1, **options))


def test_folder_of_photographs_becomes_shards_that_training_reads(tmp_path, monkeypatch):
    for name in ("a/1", "a/2", "b/1"):
        photo(tmp_path / "in", name)
    photo(tmp_path / "in", "c", caption=None)
    photo(tmp_path / "in", "d", caption="a castle")
    (tmp_path / "in" / "e.jpg").write_bytes(b"not a picture")
    (tmp_path / "in" / "e.txt").write_text("a man")
    made = make(tmp_path, monkeypatch, FACE, size=3, people=True)
    assert (made.shards, made.kept, made.before) == (1, 3, 0)
    assert made.reasons == {folder.NO_CAPTION: 1, index.NO_NOUN: 1, index.BROKEN_PICTURE: 1}
    entries = [e for shard in index.expand((str(tmp_path / "out"),)) for e in index.load(shard, tmp_path / "cache")]
    assert [(e.problem, e.width, e.height, e.identity) for e in entries] == [("", 320, 240, who) for who in "aab"]
    described = entries[0].description()
    assert described["subject"] == "woman" and described["face_box"] == pytest.approx(FACE, abs=1)
    x0, y0, x1, y1 = FACE
    assert len(described["landmarks"]) == 5
    assert all(x0 <= x <= x1 and y0 <= y <= y1 for x, y in described["landmarks"])
    samples = Samples(entries, [(64, 64)] * 3, Data(workers=0), None, 16, 0)
    mask = samples.mask(entries[0], 0, (0, 0, 320, 240))
    assert float(mask[4, 3]) > 0.9 and float(mask[0, 0]) == 0.0  # in the face; in the corner
    again = make(tmp_path, monkeypatch, FACE, size=3, people=True)
    assert (again.shards, again.kept, again.before) == (0, 0, 3)  # nothing is made twice


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ((), reasons.NO_FACE),
        ((FACE, (200, 80, 260, 160)), index.TWO_FACES),
        (((100, 80, 180, 180, False),), reasons.DOUBTFUL_FACE),
        (((100, 80, 130, 120),), reasons.SMALL_FACE),
    ],
)
def test_photographs_without_one_clear_face_are_left_out(tmp_path, monkeypatch, boxes, reason):
    photo(tmp_path / "in", "a")
    made = make(tmp_path, monkeypatch, *boxes)
    assert made.kept == 0 and made.reasons == {reason: 1}
    assert [path.name for path in (tmp_path / "out").iterdir()] == [photos.LEFT_OUT]


def test_faces_far_behind_do_not_count(tmp_path, monkeypatch):
    photo(tmp_path / "in", "a")
    assert make(tmp_path, monkeypatch, FACE, (240, 10, 255, 30)).kept == 1


def test_a_doubtful_find_is_neither_the_face_nor_a_second_one(tmp_path, monkeypatch):
    photo(tmp_path / "in", "a")
    assert make(tmp_path, monkeypatch, (10, 10, 300, 220, False), FACE).kept == 1
    (shard,) = index.expand((str(tmp_path / "out"),))
    (entry,) = index.load(shard, tmp_path / "cache")
    assert entry.description()["face_box"] == pytest.approx(FACE, abs=1)


def test_any_picture_will_do_where_no_face_is_asked_for(tmp_path, monkeypatch):
    photo(tmp_path / "in", "a", "a castle in [[thick fog]]")
    assert make(tmp_path, monkeypatch, faces=False).kept == 1
    (shard,) = index.expand((str(tmp_path / "out"),))
    (entry,) = index.load(shard, tmp_path / "cache", faces=False)
    assert entry.problem == "" and entry.description() == {"caption": "a castle in thick fog", "target": "thick fog"}


def test_captions_may_come_from_one_file(tmp_path, monkeypatch):
    photo(tmp_path / "in", "x/a", caption=None)
    line = {"file": "x/a.png", "caption": "Anna in a park", "subject": "Anna"}
    (tmp_path / "in" / "captions.jsonl").write_text(json.dumps(line) + "\n")
    assert make(tmp_path, monkeypatch, FACE).kept == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_captions_in_utf_8_with_or_without_its_mark(tmp_path, monkeypatch, encoding):
    path = photo(tmp_path / "in", "a", caption=None)
    path.with_suffix(".txt").write_bytes("Zoë, a woman in a café".encode(encoding))
    line = {"file": "b.png", "caption": "Zoë in a café", "subject": "Zoë"}
    photo(tmp_path / "in", "b", caption=None)
    (tmp_path / "in" / "captions.jsonl").write_bytes(json.dumps(line, ensure_ascii=False).encode(encoding))
    assert make(tmp_path, monkeypatch, FACE).kept == 2
    (shard,) = index.expand((str(tmp_path / "out"),))
    captions = [entry.description()["caption"] for entry in index.load(shard, tmp_path / "cache")]
    assert captions == ["Zoë, a woman in a café", "Zoë in a café"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_caption_files_in_other_encodings_are_named_and_counted(tmp_path, monkeypatch, caplog, encoding):
    photo(tmp_path / "in", "a")
    photo(tmp_path / "in", "b", caption=None).with_suffix(".txt").write_bytes("a woman in a café".encode(encoding))
    made = make(tmp_path, monkeypatch, FACE)
    assert made.kept == 1 and made.reasons == {folder.NOT_TEXT: 1}
    assert str(Path("in", "b.txt")) in caplog.text


def test_bad_lines_of_the_captions_file_are_named_and_counted(tmp_path, monkeypatch, caplog):
    good = json.dumps({"file": "a.png", "caption": "a woman"}).encode()
    bad = [
        b"{", b"[]", b"3", b'{"file": "b.png"}', b'{"file": 3, "caption": "a woman"}', b"\xff\xfe",
        b'{"file": "b.png", "caption": ["a woman"]}', b'{"file": "b.png", "caption": "a woman", "subject": 4}',
    ]  # fmt: skip
    for name in "ab":
        photo(tmp_path / "in", name, caption=None)
    (tmp_path / "in" / "captions.jsonl").write_bytes(b"\n".join([good, b"", *bad]))
    made = make(tmp_path, monkeypatch, FACE)
    assert made.kept == 1 and made.reasons == {folder.BAD_LINE: len(bad), folder.NO_CAPTION: 1}
    assert all(f"line {number} is not" in caplog.text for number in range(3, 3 + len(bad)))


def contents(root: Path) -> dict[str, list[str]]:
    """Keys and captions of every shard."""
    shards = index.expand((str(root / "out"),))
    return {
        Path(shard).name: [(e.key, e.description()["caption"]) for e in index.load(shard, root / "cache")]
        for shard in shards
    }


def test_photographs_that_come_later_get_shards_of_their_own(tmp_path, monkeypatch):
    for name in "bcd":
        photo(tmp_path / "in", name, f"a woman {name}")
    make(tmp_path, monkeypatch, FACE, size=2)
    before = contents(tmp_path)
    photo(tmp_path / "in", "a", "a woman a")  # sorts before the others
    made = make(tmp_path, monkeypatch, FACE, size=2)
    assert (made.shards, made.kept, made.before) == (1, 1, 3)
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    told = [caption[-1] for samples in after.values() for _, caption in samples]
    assert told == ["b", "c", "d", "a"] and len({key for samples in after.values() for key, _ in samples}) == 4


def test_interrupted_command_goes_on(tmp_path, monkeypatch):
    for name in "abcd":
        photo(tmp_path / "in", name, f"a woman {name}")
    sample_of = photos.sample_of

    def interrupted(photo_, *rest):
        if photo_.name == "d.png":
            raise KeyboardInterrupt
        return sample_of(photo_, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(photos, "sample_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, patch, FACE, size=2)
    assert list(contents(tmp_path)) == ["train-000000.tar"]
    made = make(tmp_path, monkeypatch, FACE, size=2)
    assert (made.shards, made.kept, made.before) == (1, 2, 2)
    assert [caption[-1] for samples in contents(tmp_path).values() for _, caption in samples] == list("abcd")


def test_shards_of_another_make_are_not_added_to(tmp_path, monkeypatch):
    photo(tmp_path / "in", "a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train-000000.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="choose another --out"):
        make(tmp_path, monkeypatch, FACE)


def test_photographs_lose_their_exif_and_stand_upright(tmp_path):
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(noise(1)).save(path, exif=exif)
    assert photos.open_photo(path, 2048).size == (240, 320)
    assert photos.open_photo(path, 160).size == (120, 160)


def test_first_noun_is_the_subject(tmp_path):
    looks = look.Look(photos.photo_recipe(photos.Options(tmp_path, tmp_path)), photos.SUBJECTS)
    assert looks.noun("A young Man and a girl") == "man"
    with pytest.raises(index.BadSample, match=reasons.NO_NOUN):
        looks.noun("a humanoid")
