"""Whether a picture finds its person's reference, where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omniportrait.training.pivot import config as settings
from omniportrait.training.pivot.contrast import teach
from omniportrait.training.pivot.retrieval import look, look_with_file, retrieved
from test_training_tower import lesson, people


def test_nearest_reference_by_hand():
    random = np.random.default_rng(0)
    references, pictures = random.normal(5, 1, (6, 4)), random.normal(5, 1, (40, 4))
    owners, nouns = random.integers(6, size=40), ["man", "woman", "man", "woman", "woman", "man"]
    middle = references.mean(0)

    def cosine(one, other):
        one, other = one - middle, other - middle
        return one @ other / np.sqrt(one @ one * (other @ other))

    right = alike = 0
    for picture, owner in zip(pictures, owners, strict=True):
        near = [cosine(picture, reference) for reference in references]
        rivals = [place for place in range(6) if nouns[place] == nouns[owner]]
        right += max(range(6), key=near.__getitem__) == owner
        alike += max(rivals, key=near.__getitem__) == owner
    tensors = (torch.from_numpy(each) for each in (references, pictures, owners))
    found = retrieved(*tensors, nouns)
    assert (found.share, found.same_noun) == (pytest.approx(right / 40), pytest.approx(alike / 40))
    assert 0 < right < alike < 40
    assert (found.pictures, found.people, found.rivals) == (40, 6, 3.0)


def test_colours_tell_people_of_one_colour_each(tmp_path):
    """The mean colour finds everybody, a constant only the first."""
    config = lesson(tmp_path)
    right = look(lambda faces: faces.mean((2, 3)), config)
    assert (right.share, right.pictures, right.people, right.rivals) == (1.0, 8, 4, 4.0)
    assert look(lambda faces: torch.zeros(len(faces), 2), config).share == 0.25


def test_file_is_judged_on_other_shards(tmp_path):
    (tmp_path / "others").mkdir()
    config = lesson(tmp_path, steps=2)
    people(tmp_path / "others" / "held_out-000000.tar", 3)
    teach(config, tmp_path / "tower.safetensors", 1.0, lambda _: None)
    found = look_with_file(tmp_path / "tower.safetensors", config, [str(tmp_path / "others")])
    assert (found.pictures, found.people) == (6, 3) and "6 pictures of 3 people" in str(found)


def test_one_person_is_refused(tmp_path):
    people(tmp_path / "train-000000.tar", 1)
    config = settings.read("demo", {"data.shards": [str(tmp_path)], "out": str(tmp_path)})
    with pytest.raises(ValueError, match="no two people"):
        look(lambda faces: faces.flatten(1), config)
