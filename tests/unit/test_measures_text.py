"""demo/measures/text.py: shapes, the saved file, the questions asked of it, and that it learns from renders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omniportrait.demo.learning.loop import Budget
from omniportrait.demo.learning.pictures import Pictures
from omniportrait.demo.measures.held_out import Renders, text_accuracy
from omniportrait.demo.measures.text import HEADS, SIDE, TextMeasure, prepared
from omniportrait.demo.measures.text_training import roughened, train, words

CLASSES = {
    "background": ("beach", "forest", "snow"), "garment": ("shirt", "suit"), "colour": ("blue", "green", "red"),
    "expression": ("neutral", "smiling"), "subject": ("man", "woman"),
}


@pytest.fixture
def model() -> TextMeasure:
    torch.manual_seed(0)
    return TextMeasure(CLASSES).eval()


def test_every_head_answers_for_every_picture(model):
    logits = model(torch.rand(2, 3, SIDE, SIDE))
    assert {head: tuple(answer.shape) for head, answer in logits.items()} == {
        head: (2, len(CLASSES[head])) for head in HEADS
    }
    assert 3e5 < sum(p.numel() for p in model.parameters()) < 6e5
    shares = model.probabilities(torch.rand(2, 3, 200, 300))
    assert all(torch.allclose(share.sum(1), torch.ones(2)) for share in shares.values())


def test_saved_file_gives_the_same_answers(model, tmp_path):
    """Half precision on disk: logits of the loaded model stay within its rounding, the words are the same."""
    model.train()(torch.rand(8, 3, SIDE, SIDE))  # so that the running statistics are not the initial ones
    model.eval().save(tmp_path / "m.safetensors", {"license": "CC0-1.0"})
    again = TextMeasure.load(tmp_path / "m.safetensors")
    assert again.classes == model.classes and not again.training
    pictures = torch.rand(3, 3, SIDE, SIDE)
    for head, logits in model(pictures).items():
        torch.testing.assert_close(again(pictures)[head], logits, atol=5e-3, rtol=0)


def test_agreement_compares_with_the_wanted_words(model):
    pictures = torch.rand(2, 3, SIDE, SIDE)
    best = {head: [CLASSES[head][i] for i in logits.argmax(1)] for head, logits in model(pictures).items()}
    first = {head: best[head][0] for head in HEADS}
    other = {head: next(w for w in CLASSES[head] if w != best[head][1]) for head in HEADS}
    answers = model.agreement(pictures, [first, other])
    assert all(answer.tolist() == [True, False] for answer in answers.values())
    with pytest.raises(ValueError, match="knows no colour 'mauve': use one of blue, green, red"):
        model.agreement(pictures[:1], [{**first, "colour": "mauve"}])


def test_shrinking_averages(model):
    """A fine checkerboard becomes grey; picking every second pixel would make it black or white."""
    checks = ((torch.arange(256)[:, None] + torch.arange(256)) % 2).float().expand(1, 3, -1, -1)
    assert prepared(checks)[..., 4:-4, 4:-4].sub(0.5).abs().max() < 0.02


def test_roughening_keeps_the_range_is_seeded_and_changes_every_picture():
    pictures = torch.randint(0, 256, (8, 3, SIDE, SIDE), dtype=torch.uint8)
    one, two, three = (roughened(pictures, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, three)
    assert one.min() >= 0 and one.max() <= 1
    assert ((one - pictures / 255).abs().mean((1, 2, 3)) > 0.01).all()


def test_training_learns_to_tell_what_is_shown():
    """Coloured disks before plain walls: a short training names wall and disk of pictures that it never saw."""
    random = np.random.default_rng(0)
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
            same = {"garment": "shirt", "expression": "neutral", "subject": "man"}
            records.append({"background": str(wall), "colour": str(colour), **same})
        return np.stack(pixels), records

    pixels, records = made(192)
    pictures = Pictures((pixels,), (np.zeros(pixels.shape[:3], np.uint8),), (records,), np.array([0]))
    model = train(pictures, Budget(minutes=1, steps=80), torch.device("cpu"), batch=16, say=lambda line: None)
    assert model.classes["colour"] == ("blue", "green", "red") == words(records)["colour"]
    fresh, descriptions = made(60)
    right = text_accuracy(Renders(torch.from_numpy(fresh).permute(0, 3, 1, 2), descriptions), model)
    assert right["background"] > 0.9 and right["colour"] > 0.8 and right["garment"] == 1.0
