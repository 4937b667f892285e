"""What one sample of a shard becomes; no ComfyUI."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from made_shards import GOOD, encoded, mask, opened, picture, sample
from omniportrait.models.pivot.encoder import CLIP_MEAN, CLIP_STD, prepare_face
from omniportrait.training.data import samples as samples_module
from omniportrait.training.data.augment import Augmentation
from omniportrait.training.data.plan import Plan, Slot
from omniportrait.training.data.samples import MicroBatches, crop_window, loader, seen_face
from omniportrait.training.settings import Data
from PIL import Image


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


def test_augmented_faces_come_of_no_larger_crop_than_is_of_use(monkeypatch):
    """The crop holds 2 faces and the tower sees 1.4 of them: with 1.5 pixels for one of its 64 that is 137. What the
    tower sees of a smooth picture is the same from fewer pixels."""
    sides, real = [], samples_module.augment
    monkeypatch.setattr(samples_module, "augment", lambda crop, *_: sides.append(crop.shape[-1]) or real(crop, *_))
    ramp = torch.linspace(0, 255, 600).byte().expand(3, 600, 600)
    nothing = Augmentation(**STILL)
    found = seen_face(ramp, (200, 200, 400, 400), 64, nothing, torch.Generator())
    seen_face(ramp, (270, 270, 330, 330), 64, nothing, torch.Generator())  # never enlarged
    assert sides == [137, 120]
    assert (found - seen_face(ramp, (200, 200, 400, 400), 64)).abs().max() < 0.05  # of a deviation


def test_normalisation_is_clips():
    grey = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    expected = [(128 / 255 - mean) / deviation for mean, deviation in zip(CLIP_MEAN, CLIP_STD, strict=True)]
    assert seen_face(grey, (8, 8, 24, 24), 8).mean((1, 2)).tolist() == pytest.approx(expected, abs=1e-4)
