"""A person's file: what goes in comes out to the bit, names stay in their folder, and whatever else is refused."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from omniportrait.models.faces import FaceReference, identity_file
from omniportrait.models.faces.identity_file import load, save, store
from PIL import Image
from pivot_files import refusal
from safetensors import safe_open
from safetensors.torch import load_file, save_file

KEY = "0123456789abcdef" * 4
NAME = "anna.safetensors"


def photograph(seed: int = 0, side: int = 32, **more) -> FaceReference:
    """Numbers that no shorter format holds."""
    random = torch.Generator().manual_seed(seed)
    crop, mask = torch.rand(1, side, side, 3, generator=random), torch.rand(1, side, side, generator=random)
    points = tuple((x / 3, x / 7) for x in range(1, 6))
    values = {"mask": mask, "face_box": (1 / 3, 2.5, 20.1, 30.7), "landmarks": points} | more
    return FaceReference(crop, box=(-3.0, 0.1, 29.0, 32.1), source="built-in, landmarks", **values)


def person() -> FaceReference:
    """Three photographs: with everything, without a face, with an embedding."""
    others = photograph(1, 48, mask=None, face_box=None, landmarks=None), photograph(2)
    embedded = replace(others[1], embeddings={KEY: torch.arange(9) / 7})
    return replace(photograph(0, embeddings={KEY: torch.full((9,), 1 / 3)}), more=(others[0], embedded))


def same(found: FaceReference, expected: FaceReference) -> bool:
    pairs = list(zip(found.photographs, expected.photographs, strict=True))
    plain = ("box", "source", "face_box", "landmarks", "photo_key")
    return found.key == expected.key and all(
        all(getattr(a, name) == getattr(b, name) for name in plain)
        and torch.equal(a.crop, b.crop)
        and (b.mask is None) == (a.mask is None)
        and (b.mask is None or torch.equal(a.mask, b.mask))
        and a.embeddings.keys() == b.embeddings.keys()
        and all(torch.equal(a.embeddings[key], value) for key, value in b.embeddings.items())
        for a, b in pairs
    )


def test_round_trip(tmp_path):
    save(tmp_path / NAME, person())
    assert same(load(tmp_path / NAME), person())
    assert not same(photograph(1), photograph(2))


def test_the_file_is_as_described(tmp_path):
    save(tmp_path / NAME, person())
    with safe_open(tmp_path / NAME, framework="pt") as file:
        metadata, keys = file.metadata(), set(file.keys())
        shapes = {key: (file.get_slice(key).get_dtype(), file.get_slice(key).get_shape()) for key in keys}
    whole = {"crop": 32, "mask": 32, "box": 0, "face_box": 0, "landmarks": 0}
    assert keys == {f"0.{name}" for name in whole} | {f"2.{name}" for name in whole} | {
        f"0.embedding.{KEY}", f"2.embedding.{KEY}", "1.crop", "1.box",
    }  # fmt: skip
    assert shapes["1.crop"] == ("F32", [1, 48, 48, 3]) and shapes["0.mask"] == ("F32", [1, 32, 32])
    assert shapes["0.box"] == ("F64", [4]) and shapes["2.landmarks"] == ("F64", [5, 2])
    assert (metadata["format"], metadata["format_version"]) == ("omniportrait-identity", "1")
    assert json.loads(metadata["sources"]) == ["built-in, landmarks"] * 3
    covers = [Image.open(io.BytesIO(base64.b64decode(text))) for text in json.loads(metadata["ssmd_cover_images"])]
    assert [cover.size for cover in covers] == [(256, 256)] * 3
    mean = np.asarray(covers[0]).mean() / 255
    assert abs(mean - float(person().crop.mean())) < 0.02


@pytest.mark.parametrize(
    "name",
    ["", " ", ".", "..", "/", "/anna", "//anna", "anna/", "../anna", "a/../../anna", "a\\..\\..\\anna", "C:\\anna",
     "c:anna", "a//b", ".hidden", "a/.hidden", "anna.", "anna /b", "nul", "a/COM1.x", "a\nb", "a\0b", "a?b", "a|b",
     "~/\x7f", "\udc80", "x" * 200, "\u00e9" * 100],
)  # fmt: skip
def test_names_that_no_file_may_have(tmp_path, name):
    inside = tmp_path / "a" / "b"
    with pytest.raises(ValueError, match="name"):
        store(inside, name, photograph())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name, file",
    [("anna", "anna"), ("anna.safetensors", "anna"), (" anna b ", "anna b"), ("family/anna", "family/anna"),
     ("family\\anna", "family/anna"), ("Änna 安娜 v1.5", "Änna 安娜 v1.5"), ("a..b", "a..b"), ("console", "console")],
)  # fmt: skip
def test_names(tmp_path, name, file):
    assert store(tmp_path, name, photograph()) == tmp_path / f"{file}.safetensors"
    assert same(load(tmp_path / f"{file}.safetensors"), photograph())


def test_a_taken_name(tmp_path):
    """Another person gets a number, the same one the same file; only a person who asks for it loses the old one."""
    first, second, third = (photograph(seed) for seed in range(3))
    assert store(tmp_path, "a.b", first).name == "a.b.safetensors"
    assert store(tmp_path, "a.b", second).name == store(tmp_path, "a.b", second).name == "a.b_00002.safetensors"
    assert store(tmp_path, "a.b", first).name == "a.b.safetensors"
    more = replace(first, embeddings={KEY: torch.ones(9)})
    assert store(tmp_path, "a.b", more).name == "a.b_00003.safetensors"
    (tmp_path / "b.safetensors").write_bytes(b"something else")
    assert store(tmp_path, "b", first).name == "b_00002.safetensors"
    assert store(tmp_path, "a.b", third, overwrite=True).name == "a.b.safetensors"
    assert len(os.listdir(tmp_path)) == 5 and same(load(tmp_path / "a.b.safetensors"), third)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_file_and_one_sentence(tmp_path, monkeypatch, broken):
    store(tmp_path, "anna", photograph(1))
    with monkeypatch.context() as patch:
        patch.setattr(os, broken, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(ValueError, match=r"anna.safetensors cannot be written \(No space left on device\): "):
            store(tmp_path, "anna", photograph(2), overwrite=True)
    assert os.listdir(tmp_path) == [NAME] and same(load(tmp_path / NAME), photograph(1))


def test_too_many_photographs(tmp_path):
    crowd = replace(photograph(), more=(photograph(1),) * 64)
    with pytest.raises(ValueError, match="has 65 photographs, but an identity holds at most 64"):
        save(tmp_path / NAME, crowd)
    assert not list(tmp_path.iterdir())


def spoiled(path, changed: dict[str, torch.Tensor | None], **metadata: str):
    """The file of `person` with other tensors (None: without) and another header."""
    save(path, person())
    with safe_open(path, framework="pt") as file:
        header = file.metadata() | metadata
    tensors = load_file(path) | changed
    save_file({key: value for key, value in tensors.items() if value is not None}, path, header)
    return path


def with_value(part: str, value: float) -> dict[str, torch.Tensor]:
    shapes = {"crop": (1, 32, 32, 3), "mask": (1, 32, 32), "box": (4,), "face_box": (4,), "landmarks": (5, 2)}
    dtype = torch.float32 if part in ("crop", "mask") else torch.float64
    tensor = torch.linspace(0, 1, torch.Size(shapes[part]).numel(), dtype=dtype).reshape(shapes[part]).clone()
    tensor.view(-1)[0] = value
    return {f"0.{part}": tensor}


@pytest.mark.parametrize("part", ["crop", "mask", "box", "face_box", "landmarks"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -2e6])
def test_values_that_no_face_has(tmp_path, part, value):
    assert f"values in 0.{part} that no face has" in refusal(spoiled(tmp_path / NAME, with_value(part, value)), load)


@pytest.mark.parametrize(
    "changed",
    [
        {"0.crop": torch.zeros(1, 32, 32, 4)},
        {"0.crop": torch.zeros(1, 31, 32, 3)},
        {"0.crop": torch.zeros(2, 32, 32, 3)},
        {"0.crop": torch.zeros(32)},
        {"0.crop": torch.zeros(())},
        {"0.crop": torch.zeros(1, 32, 32, 3).half()},
        {"0.crop": torch.zeros(1, 8, 8, 3), "0.mask": torch.zeros(1, 8, 8)},
        {"1.crop": torch.zeros(1, 2048, 2048, 3)},
        {"0.mask": torch.zeros(1, 48, 48)},
        {"0.mask": torch.zeros(1, 32, 32).bool()},
        {"0.box": torch.arange(4.0)},
        {"0.box": torch.arange(5.0).double()},
        {"0.landmarks": torch.zeros(6, 2).double()},
        {f"0.embedding.{KEY}": torch.zeros(2)},
        {f"0.embedding.{KEY}": torch.zeros(9000)},
        {f"0.embedding.{KEY}": torch.zeros(3, 9)},
        {f"0.embedding.{KEY}": torch.zeros(0)},
        {"1.crop": None},
        {"1.box": None},
    ],
)
def test_shapes_that_do_not_fit(tmp_path, changed):
    assert "does not fit its own header" in refusal(spoiled(tmp_path / NAME, changed), load)


@pytest.mark.parametrize(
    "key", ["3.crop", "0.name", "00.crop", "0.crop.x", "crop", "0.embedding.x", "../0.crop", "-1.box"]
)
def test_tensors_that_no_identity_has(tmp_path, key):
    assert "which no identity has" in refusal(spoiled(tmp_path / NAME, {key: torch.zeros(4)}), load)


@pytest.mark.parametrize("box", [(3.0, 0.0, 3.0, 4.0), (0.0, 5.0, 3.0, 4.0)])
def test_an_empty_box(tmp_path, box):
    changed = {"0.box": torch.tensor(box, dtype=torch.float64)}
    assert "values in 0.box" in refusal(spoiled(tmp_path / NAME, changed), load)


@pytest.mark.parametrize(
    "sources", ["", "[]", "{}", "3", "[1, 2, 3]", '["' + "x" * 101 + '"]', "[" * 20_000, json.dumps(["a"] * 65), "NaN"]
)
def test_broken_sources(tmp_path, sources):
    assert "has a broken header: sources must be" in refusal(spoiled(tmp_path / NAME, {}, sources=sources), load)


def test_another_number_of_photographs_than_the_header_says(tmp_path):
    assert "holds '2." in refusal(spoiled(tmp_path / NAME, {}, sources='["a", "b"]'), load)
    assert "3.box is missing" in refusal(spoiled(tmp_path / NAME, {}, sources='["a", "b", "c", "d"]'), load)


@pytest.mark.parametrize("covers", ["", "[" * 20_000, "x" * 1_000_000, '["no picture"]', "\0\u202e"])
def test_nobody_reads_the_covers(tmp_path, covers):
    assert same(load(spoiled(tmp_path / NAME, {}, ssmd_cover_images=covers)), person())


def test_other_files(tmp_path):
    path = tmp_path / NAME
    torch.save({"weight": torch.zeros(3)}, path)
    assert "is a pickled checkpoint" in refusal(path, load) and "one from Save Identity" in refusal(path, load)
    save_file({"lora_unet.lora_up.weight": torch.zeros(2)}, path)
    assert "looks like a LoRA" in refusal(path, load)
    save_file({"weight": torch.zeros(2)}, path)
    assert "does not say that it is an identity" in refusal(path, load)
    assert "format version 2" in refusal(spoiled(path, {}, format_version="2"), load)
    save(path, photograph())
    whole = path.read_bytes()
    for length in (5, 300, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "damaged, cut short" in refusal(path, load)
    path.write_bytes((2**62).to_bytes(8, "little") + whole[8:])  # a header longer than the file
    assert "damaged, cut short" in refusal(path, load)
    path.unlink()
    assert "cannot be read (No such file" in refusal(path, load)


def test_the_largest_header_fits(tmp_path):
    """64 photographs with the longest source that is read again."""
    crowd = replace(photograph(), source="x" * identity_file.MAX_SOURCE)
    crowd = replace(crowd, more=tuple(replace(crowd, more=()) for _ in range(63)))
    save(tmp_path / NAME, crowd)
    assert len(load(tmp_path / NAME).photographs) == 64
