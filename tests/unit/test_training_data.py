"""Shards, good and bad, and what becomes of them; no ComfyUI."""

from __future__ import annotations

import http.server
import io
import json
import os
import tarfile
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from omniportrait.models.pivot_encoder import CLIP_MEAN, CLIP_STD, prepare_face
from omniportrait.training.pivot import index
from omniportrait.training.pivot.config import Data
from omniportrait.training.pivot.dataset import read_index, skip_table
from omniportrait.training.pivot.plan import Plan, Slot
from omniportrait.training.pivot.samples import MicroBatches, Samples, crop_window, loader, seen_face
from PIL import Image

BOX = [16, 8, 40, 40]
ENDLESS = float("inf")
GOOD = {"caption": "a woman in a forest", "subject": "woman", "face_box": BOX}


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def picture(seed: int = 0, width: int = 64, height: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def mask(width: int = 64, height: int = 64) -> np.ndarray:
    pixels = np.zeros((height, width), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    return pixels


def sample(seed: int = 0, without: str = "", **described) -> dict[str, bytes]:
    files = {
        "jpg": encoded(picture(seed), "JPEG", quality=95),
        "json": json.dumps(GOOD | described).encode(),
        "mask.png": encoded(mask()),
    }
    files.pop(without, None)
    return files


def write(path: Path, samples: list[dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for number, files in enumerate(samples):
            for extension, content in files.items():
                member = tarfile.TarInfo(f"{number:04d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def entries_of(folder: Path, *shards: Path) -> list[index.Entry]:
    return [entry for shard in shards for entry in index.load(str(shard), folder / "cache")]


def opened(folder: Path, samples: list[dict[str, bytes]], data: Data | None = None, **options) -> Samples:
    entries = entries_of(folder, write(folder / "train-000000.tar", samples))
    options = {"augmentation": None, "side": 16, "seed": 0} | options
    return Samples(entries, [(64, 64)] * len(entries), data or Data(workers=0), **options)


# Bad data


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


# Index


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
    assert index.expand(("https://host/train-{00..01}.tar",)) == ["https://host/train-00.tar", "https://host/train-01.tar"]
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


# Samples


def test_picture_mask_and_face_are_of_one_crop(tmp_path):
    ramp = np.repeat(np.arange(0, 256, 2, np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    wide = {
        "jpg": encoded(ramp, "JPEG", quality=100),
        "json": json.dumps(GOOD | {"face_box": [96, 8, 120, 40]}).encode(),
        "mask.png": encoded(np.pad(mask()[:, :40], ((0, 0), (80, 8)))),
    }
    samples = opened(tmp_path, [wide])
    found = samples[Slot(0, 0, 0)]
    assert crop_window((128, 64), (64, 64), [96, 8, 120, 40]) == (64, 0, 128, 64)  # near the face, not the middle
    assert abs(int(found.picture[0, 30, 0]) - 128) < 6 and found.picture.shape == (3, 64, 64)
    assert float(found.mask[2, 5]) == 1.0 and float(found.mask[2, 2]) == 0.0 and found.mask.shape == (8, 8)
    assert float(found.mask.sum()) == pytest.approx(24 * 32 / 64)


@pytest.mark.parametrize(
    ("shape", "size", "face", "window"),
    [
        ((64, 64), (64, 64), [0, 0, 9, 9], (0, 0, 64, 64)),
        ((100, 200), (50, 50), [0, 0, 10, 10], (0, 0, 100, 100)),
        ((100, 200), (50, 50), [40, 190, 60, 200], (0, 100, 100, 200)),
        ((100, 200), (50, 50), [40, 90, 60, 110], (0, 50, 100, 150)),
    ],
)
def test_crop_stays_inside_and_near_the_face(shape, size, face, window):
    assert crop_window(shape, size, face) == window


def test_labels_are_read_where_there_is_no_mask(tmp_path):
    labels = np.zeros((64, 64), np.uint8)
    labels[8:40, 16:28], labels[8:40, 28:40], labels[50:, :] = 1, 6, 4
    files = sample(without="mask.png") | {"png": encoded(labels)}
    made = opened(tmp_path, [files], Data(workers=0, face_labels=(1, 3, 5, 6)))[Slot(0, 0, 0)]
    (tmp_path / "b").mkdir()
    assert torch.equal(made.mask, opened(tmp_path / "b", [sample()])[Slot(0, 0, 0)].mask)


def test_tower_sees_in_training_what_it_sees_at_inference():
    """Face Reference crops twice the box, Pivot Conditioning prepares that crop: the same without augmentation."""
    pixels = torch.from_numpy(picture(5, 96, 96)).movedim(-1, 0)
    box = (32.0, 32.0, 56.0, 64.0)  # 24 x 32: its crop is 64 pixels, at its own resolution
    crop = pixels[:, 16:80, 12:76].movedim(0, -1)[None].float() / 255
    expected = prepare_face(crop, 24, face_box=(20.0, 16.0, 44.0, 48.0))[0]
    assert torch.allclose(seen_face(pixels, box, 24), expected, atol=1e-6)


@pytest.mark.parametrize(
    "told, used", [([0, 0, 32, 32], (0, 0, 32, 32)), ([0, 0, 1e9, 1e9], (0, 0, 64, 64))], ids=["its own", "of no use"]
)
def test_reference_of_its_own_is_taken_and_a_box_of_no_use_means_all_of_it(tmp_path, told, used):
    files = sample(0, reference_box=told) | {"reference.jpg": encoded(picture(9), "JPEG", quality=95)}
    found = opened(tmp_path, [files])[Slot(0, 0, 0)]
    with Image.open(io.BytesIO(files["reference.jpg"])) as file:
        pixels = torch.from_numpy(np.array(file)).movedim(-1, 0)
    assert torch.equal(found.face, seen_face(pixels, used, 16))


STILL = dict.fromkeys(("zoom_chance", "rotate_chance", "flip_chance", "elastic_chance", "colour_chance"), 0.0)
STILL |= {"box": 0.0, "blur_chance": 0.0, "grey_chance": 0.0}


def test_background_of_the_reference_may_become_noise(tmp_path):
    """The face stays, all else changes from epoch to epoch; masks come from the picture that is the reference."""
    from omniportrait.training.pivot.config import Augmentation

    people = [sample(i, identity=0) | {"mask.png": encoded(np.roll(mask(), 9 * i))} for i in range(2)]
    data = Data(workers=0, reference="identity")

    def faces(chance: float) -> list[torch.Tensor]:
        settings_ = Augmentation(**STILL, background_chance=chance)
        samples = opened(tmp_path, people, data, augmentation=settings_, side=64)
        return [samples[Slot(0, epoch, 0)].face for epoch in range(12)]

    clean, noisy, sometimes = faces(0.0), faces(1.0), faces(0.5)
    # The tower sees a square of 1.4 faces, 45 pixels, as 64: rows 8 to 40 of the picture, columns 25 to 49.
    left, top, scale = round((16 + 40 - 45) / 2), round((8 + 40 - 45) / 2), 64 / 45
    inside = (slice(None), slice(round((12 - top) * scale), round((36 - top) * scale)),
              slice(round((29 - left) * scale), round((45 - left) * scale)))  # fmt: skip
    for plain, changed in zip(clean, noisy, strict=True):
        assert torch.equal(plain, clean[0]) and torch.allclose(changed[inside], plain[inside], atol=1e-4)
        assert (changed[:, :, :20] - plain[:, :, :20]).abs().mean() > 0.3
    assert not torch.equal(noisy[0], noisy[1])
    assert 0 < sum(torch.equal(face, clean[0]) for face in sometimes) < 12


def test_reference_is_another_picture_of_the_same_person(tmp_path):
    people = [sample(i, identity=i % 2) for i in range(6)]
    samples = opened(tmp_path, people, Data(workers=0, reference="identity"))
    (tmp_path / "own").mkdir()
    own = opened(tmp_path / "own", people)
    faces = [own[Slot(i, 0, 0)].face for i in range(6)]

    def whose(slot: Slot) -> int:
        face = samples[slot].face
        return next(i for i in range(6) if torch.equal(face, faces[i]))

    chosen = [whose(Slot(0, epoch, 7)) for epoch in range(8)]
    assert set(chosen) == {2, 4} and chosen == [whose(Slot(0, epoch, 7)) for epoch in range(8)]
    assert whose(Slot(3, 0, 0)) in (1, 5)


def test_lone_pictures_fall_back_to_themselves(tmp_path):
    samples = opened(tmp_path, [sample(0, identity=1), sample(1)], Data(workers=0, reference="identity"))
    (tmp_path / "own").mkdir()
    own = opened(tmp_path / "own", [sample(0), sample(1)])
    assert all(torch.equal(samples[Slot(i, 0, 0)].face, own[Slot(i, 0, 0)].face) for i in range(2))


def test_workers_and_processes_read_the_same_samples(tmp_path):
    from omniportrait.training.pivot.config import Augmentation

    def read(workers: int, process: int, processes: int, start: int = 0) -> list:
        data = Data(workers=workers)
        samples = opened(tmp_path, [sample(i) for i in range(8)], data, augmentation=Augmentation())
        plan = Plan([(64, 64)] * 8, [(64, 64)], 4, 0)
        return list(loader(samples, MicroBatches(plan, start, 4, 2, process, processes)))

    alone = read(0, 0, 1)
    assert [len(batch) for batch in alone] == [2] * 8
    parallel = read(2, 0, 1)
    shared = [batch for pair in zip(read(0, 0, 2), read(0, 1, 2), strict=True) for batch in pair]
    for other in (parallel, shared):
        for ours, theirs in zip(alone, other, strict=True):
            for one, two in zip(ours, theirs, strict=True):
                assert one.slot == two.slot and torch.equal(one.face, two.face)
                assert torch.equal(one.picture, two.picture)
    later = read(0, 0, 1, start=2)
    assert [s.slot for batch in later for s in batch] == [s.slot for batch in alone[4:] for s in batch]


def test_normalisation_is_clips():
    grey = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    expected = [(128 / 255 - mean) / deviation for mean, deviation in zip(CLIP_MEAN, CLIP_STD, strict=True)]
    assert seen_face(grey, (8, 8, 24, 24), 8).mean((1, 2)).tolist() == pytest.approx(expected, abs=1e-4)
