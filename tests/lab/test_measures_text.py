"""lab/measures/text.py: shapes, the saved file, the questions asked of it, and that it learns from renders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omniportrait.lab.learning.loop import Budget
from omniportrait.lab.learning.pictures import Pictures
from omniportrait.lab.measures.held_out import Renders, text_accuracy
from omniportrait.lab.measures.text import FACE, FACE_SIDE, HEADS, SIDE, TextMeasure, faces, scenes
from omniportrait.lab.measures.text_training import roughened, train, words
from omniportrait.models.faces.embedder import template

CLASSES = {
    "background": ("beach", "forest", "snow"),
    "garment": ("shirt", "suit"),
    "colour": ("blue", "green", "red"),
    "expression": ("neutral", "smiling"),
    "subject": ("man", "woman"),
}


@pytest.fixture
def model() -> TextMeasure:
    torch.manual_seed(0)
    return TextMeasure(CLASSES).eval()


def inputs(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(7)
    return tuple(torch.rand(count, 3, side, side, generator=random) for side in (SIDE, FACE_SIDE))


def test_every_head_answers_for_every_picture(model):
    logits = model(*inputs(2))
    assert {head: tuple(answer.shape) for head, answer in logits.items()} == {
        head: (2, len(CLASSES[head])) for head in HEADS
    }
    assert 4e5 < sum(p.numel() for p in model.parameters()) < 7e5


def test_saved_file_gives_the_same_answers(model, tmp_path):
    """Half precision on disk: logits of the loaded model stay within its rounding, the words are the same."""
    model.train()(*inputs(8))  # so that the running statistics are not the initial ones
    model.eval().save(tmp_path / "m.safetensors", {"license": "CC0-1.0"})
    again = TextMeasure.load(tmp_path / "m.safetensors")
    assert again.classes == model.classes and not again.training
    answers = again(*inputs(3))
    for head, logits in model(*inputs(3)).items():
        torch.testing.assert_close(answers[head], logits, atol=5e-3, rtol=0)


def test_agreement_compares_with_the_wanted_words(model):
    pictures = torch.rand(2, 3, 200, 180, generator=torch.Generator().manual_seed(1))
    landmarks = [template() + 20, template() + 10]
    logits = model(scenes(pictures), faces(pictures, landmarks))
    best = {head: [CLASSES[head][i] for i in answer.argmax(1)] for head, answer in logits.items()}
    first = {head: best[head][0] for head in HEADS}
    other = {head: next(w for w in CLASSES[head] if w != best[head][1]) for head in HEADS}
    answers = model.agreement(pictures, [first, other], landmarks)
    assert all(answer.tolist() == [True, False] for answer in answers.values())
    with pytest.raises(ValueError, match="knows no colour 'mauve': use one of blue, green, red"):
        model.agreement(pictures[:1], [{**first, "colour": "mauve"}], landmarks[:1])


def test_a_picture_without_a_face_shows_no_expression(model):
    """Whatever is wanted: with every word wanted in turn, no expression and no subject agrees; the scene still does."""
    picture = torch.full((1, 3, 128, 128), 0.5)
    agreed = dict.fromkeys(HEADS, 0)
    for number in range(max(map(len, CLASSES.values()))):
        wanted = {head: names[number % len(names)] for head, names in CLASSES.items()}
        for head, answer in model.agreement(picture, [wanted]).items():
            agreed[head] += int(answer)
    assert {head for head in HEADS if not agreed[head]} == set(FACE)


def test_faces_are_the_aligned_chips_and_black_without_a_face():
    pictures = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(2))
    found = faces(pictures, [None, template() + 0.5])
    chip = pictures[1:, :, :150, :150]  # the template itself, half a pixel on: dlib counts from centres, we from edges
    wanted = torch.nn.functional.interpolate(chip, (FACE_SIDE,) * 2, mode="bilinear", antialias=True)
    assert not found[0].any()
    torch.testing.assert_close(found[1:], wanted, atol=1e-3, rtol=0)


def test_shrinking_averages():
    """A fine checkerboard becomes grey; picking every second pixel would make it black or white."""
    checks = ((torch.arange(256)[:, None] + torch.arange(256)) % 2).float().expand(1, 3, -1, -1)
    assert scenes(checks)[..., 4:-4, 4:-4].sub(0.5).abs().max() < 0.02


def test_roughening_keeps_the_range_is_seeded_and_changes_every_picture():
    pictures = torch.randint(0, 256, (8, 3, SIDE, SIDE), dtype=torch.uint8)
    one, two, three = (roughened(pictures, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, three)
    assert one.min() >= 0 and one.max() <= 1
    assert ((one - pictures / 255).abs().mean((1, 2, 3)) > 0.01).all()


@pytest.mark.slow
def test_training_learns_to_tell_what_is_shown():
    """Coloured disks before plain walls: a short training names both in pictures that it never saw.

    The wall is also the subject's word, which is read from the face's part of the picture."""
    random = np.random.default_rng(0)
    face = (template() * SIDE / 150).tolist()
    walls = {"dark": 40, "bright": 220}
    colours = {"red": (250, 20, 20), "green": (20, 250, 20), "blue": (20, 20, 250)}

    def made(count: int) -> tuple[np.ndarray, list[dict]]:
        y, x = np.mgrid[:SIDE, :SIDE]
        pixels, records = [], []
        for _ in range(count):
            wall, colour = random.choice(list(walls)), random.choice(list(colours))
            picture = np.full((SIDE, SIDE, 3), walls[wall], np.uint8)
            place = random.uniform(40, 88, 2)
            picture[np.hypot(x - place[0], y - place[1]) < 25] = colours[colour]
            pixels.append(picture)
            same = {"landmarks": face, "garment": "shirt", "expression": "neutral"}
            records.append({"background": str(wall), "colour": str(colour), "subject": str(wall), **same})
        return np.stack(pixels), records

    pixels, records = made(192)
    pictures = Pictures((pixels,), (np.zeros(pixels.shape[:3], np.uint8),), (records,), np.array([0]))
    model = train(pictures, Budget(minutes=1, steps=64), torch.device("cpu"), batch=16, say=lambda line: None)
    assert model.classes["colour"] == ("blue", "green", "red") == words(records)["colour"]
    fresh, descriptions = made(60)
    renders = Renders(torch.from_numpy(fresh).permute(0, 3, 1, 2), descriptions)
    right = text_accuracy(renders, model, renders.exact_landmarks())
    assert right["background"] > 0.9 and right["colour"] > 0.8 and right["subject"] > 0.9 and right["garment"] == 1.0
