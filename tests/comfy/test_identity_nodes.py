"""Save Identity and Load Identity as ComfyUI runs them, and what a person that comes from a file does to a pivot."""

from __future__ import annotations

import os
from dataclasses import replace

import folder_paths
import pytest
import torch
from omniportrait.lab.testbed import small
from omniportrait.models.pivot.handle import fused
from omniportrait.nodes.load_identity import LoadIdentity
from omniportrait.nodes.save_identity import SaveIdentity

PLACE = "omniportrait_identities"


@pytest.fixture
def identities(folder, tmp_path, monkeypatch):
    """The folder of identities beside the fixture's folder of encoders; previews go to a folder of the test."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    folder_paths.folder_names_and_paths[PLACE] = ([str(tmp_path / PLACE), str(tmp_path / "second")], {".safetensors"})
    return tmp_path / PLACE


def person(*numbers: int):
    first, *others = map(small.face, numbers)
    return replace(first, more=tuple(others))


def kept(face, name="anna", overwrite=False, **more):
    with torch.inference_mode():
        return SaveIdentity.execute(face_reference=face, name=name, overwrite=overwrite, **more)


def loaded(name="anna.safetensors"):
    with torch.inference_mode():
        return LoadIdentity.execute(identity_name=name)


def shown(result) -> int:
    """How many pictures are inside the node; they lie in ComfyUI's temporary folder."""
    files = [os.path.join(folder_paths.get_temp_directory(), each["filename"]) for each in result.ui["images"]]
    assert all(os.path.isfile(file) for file in files)
    return len(files)


def test_the_person_comes_back(identities):
    face = person(0, 1)
    saved = kept(face, "family/anna")
    assert os.listdir(identities / "family") == ["anna.safetensors"]
    assert saved.result == (face,) and saved.ui["text"] == ("family/anna.safetensors",) and shown(saved) == 2
    again = loaded("family/anna.safetensors")
    back, crop, mask = again.result
    assert back.key == face.key and back.box == face.box and shown(again) == 2
    assert torch.equal(crop, torch.cat([each.crop for each in face.photographs]))
    assert torch.equal(mask, torch.cat([each.mask for each in face.photographs]))


def test_a_taken_name_is_numbered_or_overwritten(identities):
    assert [kept(person(number)).ui["text"][0] for number in (0, 1, 0)] == [
        "anna.safetensors", "anna_00002.safetensors", "anna.safetensors",
    ]  # fmt: skip
    kept(person(2), overwrite=True)
    assert loaded().result[0].key == person(2).key and len(os.listdir(identities)) == 2


@pytest.mark.parametrize("name", ["../anna", "/anna", "a/../../anna", ""])
def test_nothing_is_written_elsewhere(identities, tmp_path, name):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="cannot be the name of an identity"):
        kept(person(0), name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("photographs", [1, 3])
def test_the_encoder_need_not_look_again(identities, load, monkeypatch, photographs):
    """The pivot is the same to the bit; with an encoder of other weights the photographs are looked at."""
    face, encoder = person(*range(photographs)), load("sd15")
    text = torch.randn(2, 768, generator=torch.Generator().manual_seed(1))
    expected = encoder.pivot(face)(text)
    kept(face, pivot_encoder=encoder)
    back = loaded().result[0]
    assert back.key == face.key  # what a model reads of the picture is the same
    calls, reference = [], type(encoder.patcher.model).reference
    monkeypatch.setattr(
        type(encoder.patcher.model), "reference", lambda self, pixels: calls.append(1) or reference(self, pixels)
    )
    assert torch.equal(encoder.pivot(back)(text), expected) and not calls
    other = load("sd15", trained=False)
    assert torch.equal(other.pivot(back)(text), other.pivot(face)(text)) and len(calls) == 2
    assert not torch.equal(other.pivot(back)(text), expected)


def test_photographs_are_fused_as_asked():
    rows = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(fused(rows), torch.full((1, 2), 2 / 2**0.5))
    torch.testing.assert_close(fused(rows, "mean"), torch.tensor([[1.5, 0.5]]))
    assert torch.equal(fused(rows[:1], "mean"), rows[:1]) and torch.equal(fused(rows[:1]), rows[:1])
    with pytest.raises(ValueError, match="choose norm mean or mean"):
        fused(rows, "concat")


def test_a_missing_file_is_said_with_the_folder(identities):
    told = LoadIdentity.validate_inputs(identity_name="nobody.safetensors")
    assert told.startswith('There is no identity "nobody.safetensors": make one with Save Identity or put ')
    assert str(identities) in told and LoadIdentity.validate_inputs(identity_name=None) is True
    with pytest.raises(ValueError, match="There is no identity"):
        loaded("../face.safetensors")


def test_a_file_that_was_replaced_is_read_again(identities):
    kept(person(0))
    first = LoadIdentity.fingerprint_inputs(identity_name="anna.safetensors")
    assert LoadIdentity.fingerprint_inputs(identity_name="anna.safetensors") == first
    os.utime(identities / "anna.safetensors", ns=(1, 1))
    assert LoadIdentity.fingerprint_inputs(identity_name="anna.safetensors") != first
    assert LoadIdentity.validate_inputs(identity_name="anna.safetensors") is True
    (identities / "anna.safetensors").write_bytes(b"\x80pickle" * 9)
    with pytest.raises(ValueError, match="is a pickled checkpoint"):
        loaded()
