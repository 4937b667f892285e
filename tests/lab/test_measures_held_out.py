"""The measures' calibration: on drawn faces where the answer is known, and the whole command on two photographs."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from omniportrait.lab.make import measures as command
from omniportrait.lab.measures.held_out import Renders, carried_moles, exact_moles, identity_separation, references
from omniportrait.lab.measures.separation import thresholds
from omniportrait.lab.measures.text import HEADS, TextMeasure
from omniportrait.models.faces.embedder import find_landmarks

LANDMARKS = np.array([(90, 100), (150, 100), (120, 135), (95, 165), (145, 165)], np.float32)
MOLES = {0: [(85, 140), (130, 80)], 1: [(155, 145)], 2: []}
WORDS = {
    "background": ("grey", "white"),
    "garment": ("shirt", "suit"),
    "colour": ("blue", "red"),
    "expression": ("neutral", "smiling"),
    "subject": ("man", "woman"),
}


def drawn(person: int, view: int, hidden: bool = False) -> tuple[np.ndarray, dict]:
    """A plain skin with the person's moles, moved by the view; `hidden` moles are named but not painted."""
    y, x = np.mgrid[:256, :256] + 0.5
    shift = np.array([7.0 * view, -5.0 * view], np.float32)
    picture, details = np.full((256, 256), 170.0), []
    for place in MOLES[person]:
        centre = np.array(place) + shift
        if not hidden:
            picture[np.hypot(x - centre[0], y - centre[1]) < 3] = 70
        details.append({"kind": "mole", "x": float(centre[0]), "y": float(centre[1]), "radius": 4.0, "visible": True})
    record = {"identity": person, "landmarks": (LANDMARKS + shift).tolist(), "details": details, "yaw": 15.0 * view}
    return np.repeat(picture[None], 3, 0).astype(np.uint8), record


def renders(*chosen: tuple) -> Renders:
    pictures, records = zip(*(drawn(*one) for one in chosen), strict=True)
    return Renders(torch.from_numpy(np.stack(pictures)), records)


def test_moles_are_told_apart_where_they_are_painted():
    """Three moles in one further view each; absent on two other people's two pictures each, at every place."""
    known = renders(*((person, view) for person in MOLES for view in (0, 1)))
    found = carried_moles(known, known.exact_landmarks())
    assert (found.separation.high.count, found.separation.low.count) == (3, 12)
    assert found.separation.auc == 1.0 and found.separation.low.high < 0.3 < 4 < found.separation.high.low
    assert found.error.high < 0.01
    assert len(exact_moles(known)) == 6 and exact_moles(known).min() > 4
    assert references(known) == {0: 0, 1: 2, 2: 4}


def test_pictures_turned_too_far_and_without_a_face_are_left_out():
    known = renders((0, 0), (0, 1), (0, 2), (1, 0), (1, 1))
    assert carried_moles(known, known.exact_landmarks(), most_yaw=20).separation.high.count == 3
    landmarks = known.exact_landmarks()
    landmarks[1] = None
    assert carried_moles(known, landmarks, most_yaw=20).separation.high.count == 1


def test_a_mole_that_was_not_drawn_is_missed():
    """The measure reads the picture: a description alone does not make it say yes."""
    known = renders((0, 0), (0, 1, True), (2, 0), (2, 1))
    assert carried_moles(known, known.exact_landmarks()).separation.high.high < 0.3


def test_identity_needs_pairs():
    known = renders((0, 0), (0, 1))
    with pytest.raises(ValueError, match="two people at least"):
        identity_separation(known, known.exact_landmarks())


def photographs() -> list[np.ndarray]:
    """Two real people, upright, cut around the face to squares of 256."""
    data = pytest.importorskip("skimage.data")
    cbook = pytest.importorskip("matplotlib.cbook")
    from PIL import Image

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        hopper = Image.open(file).convert("RGB").crop((60, 60, 440, 440))
    collins = Image.fromarray(data.astronaut()).crop((90, 0, 300, 210))
    return [np.asarray(photo.resize((256, 256))) for photo in (collins, hopper)]


def sample(photo: np.ndarray, person: int, view: int) -> dict[str, bytes]:
    """A view of a photograph as the portrait world writes it, a mole painted on one cheek, another for each person."""
    from PIL import Image

    photo = np.roll(photo if view % 2 else photo[:, ::-1], view, 1) * (1 - 0.08 * view)
    landmarks = find_landmarks(torch.from_numpy(photo.copy()).permute(2, 0, 1).float() / 255)
    place = (landmarks[person] * 0.4 + landmarks[3 + person] * 0.6).tolist()
    y, x = np.mgrid[:256, :256] + 0.5
    photo[np.hypot(x - place[0], y - place[1]) < 3] *= 0.2
    record = {head: words[person] for head, words in WORDS.items()}
    record |= {"caption": "", "identity": person, "landmarks": landmarks.tolist(), "yaw": 0.0, "pitch": 0.0}
    record["details"] = [{"kind": "mole", "x": place[0], "y": place[1], "radius": 4.0, "visible": True}]
    files = {"jpg": io.BytesIO(), "png": io.BytesIO()}
    Image.fromarray(photo.astype(np.uint8)).save(files["jpg"], "JPEG", quality=95, subsampling=0)
    Image.new("L", (256, 256)).save(files["png"], "PNG")
    return {name: file.getvalue() for name, file in files.items()} | {"json": json.dumps(record).encode()}


@pytest.mark.slow
def test_the_command_trains_calibrates_and_writes_the_page(tmp_path, capsys):
    for subset in ("train", "held_out"):
        with tarfile.open(tmp_path / f"{subset}-000000.tar", "w") as tar:
            for person, photo in enumerate(photographs()):
                for view in range(3):
                    for extension, content in sample(photo, person, view).items():
                        entry = tarfile.TarInfo(f"{person}_{view}.{extension}")
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))
    folder = str(tmp_path)
    words = ["--data", folder, "--out", folder, "--minutes", "0.02", "--page", str(tmp_path / "page.md")]
    command.main([*words, "--device", "cpu"])
    assert set(TextMeasure.load(tmp_path / "text_measure.safetensors").classes) == set(HEADS)
    cuts = thresholds(tmp_path / "measures.json")
    assert 0.2 < cuts["identity"] < 0.8 and cuts["detail"] > 0
    generated = thresholds(tmp_path / "measures.json", generated=True)
    assert 0.2 < generated["identity"] < 0.8 and generated != cuts
    page = (tmp_path / "page.md").read_text()
    assert "6 rendered portraits of 2 people" in page and "| renders, exact landmarks |" in page
    assert "| autoencoder's copies, exact landmarks |" in page
    row = next(line for line in page.splitlines() if line.startswith("| renders, landmarks found by the detector |"))
    assert row.split("|")[4].strip() == "1.000"  # two people in real photographs are told apart
    assert page in capsys.readouterr().out
