"""The words for what a person looks like, against the person."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from omniportrait.lab.world import looks, view
from omniportrait.lab.world.identity import HAIR_COLOURS, IRIS_COLOURS, Detail, identity, place
from omniportrait.lab.world.portrait import render


@pytest.fixture(scope="module")
def people():
    return [identity(number) for number in range(60)]


@pytest.fixture
def plain():
    return replace(view.reference_view(np.random.default_rng(5)), yaw=0.0, pitch=0.0, roll=0.0)


def test_words_name_the_colours_a_person_has(people):
    for person, index in zip(people, np.random.default_rng(1).integers(5, size=len(people)), strict=True):
        seen = replace(person, hair="long", hair_colour=HAIR_COLOURS[index] * 0.95, iris=IRIS_COLOURS[index] * 1.2)
        before, after = zip(*looks.looks(seen), strict=True)
        assert f"long {looks.HAIR_WORDS[index]} hair" in after and f"{looks.EYE_WORDS[index]} eyed" in before


@pytest.mark.parametrize("x, y, where", [
    (0.4, -0.4, "left cheek"), (-0.4, -0.4, "right cheek"), (0.0, -0.3, "nose"), (0.05, 0.5, "forehead"),
    (-0.3, 0.5, "right forehead"), (0.0, -0.95, "chin"),
])  # fmt: skip
def test_a_mole_is_called_by_the_part_of_the_picture_where_it_is_seen(people, plain, x, y, where):
    """The person's own left is the picture's right."""
    nearest = min(places_on_skin(), key=lambda point: np.hypot(point[0] - x, point[1] - y))
    spots = (nearest[None], np.array([0.06], np.float32), np.array([[0.2, 0.1, 0.1]], np.float32))
    person = replace(people[3], hair="bald", details=(Detail("mole", nearest, 0.06, spots),))
    assert looks.looks(person)[-1] == (f"{where} mole", f"a mole on the {where}")
    record = render(person, plain, 128).record
    (mole,), (eye, other, nose, *_) = record["details"], record["landmarks"]
    assert mole["visible"]
    if "left" in where or "right" in where:
        assert ("left" in where) == (mole["x"] > nose[0] + 4)
    assert ("forehead" in where) == (mole["y"] < min(eye[1], other[1]))
    assert ("chin" == where) == (mole["y"] > record["landmarks"][3][1])


def places_on_skin() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [place(rng) for _ in range(400)]


def test_shapes_are_named_where_they_stand_out(people):
    """A third of people or so has each word, and those with the greater word are greater."""
    for name, (_, small, _, _, great, _) in looks.SHAPE_LOOKS.items():
        sizes = {True: [], False: []}
        for person in people:
            words = {before for before, _ in looks.shape_looks(person)}
            size = person.brow.thickness if name == "brows" else looks.measures(person.vertices)[name]
            for word in {small, great} & words:
                sizes[word == great].append(size)
        assert 5 <= len(sizes[True]) <= 30 and 5 <= len(sizes[False]) <= 30, name
        assert min(sizes[True]) > max(sizes[False]), name


def test_a_face_is_measured_where_it_is_changed(people):
    """Each length against a face of which that part alone was pulled."""
    still = people[0].vertices
    for name, part, axis in [("mouth width", "lips", 0), ("lips", "lips", 1), ("jaw", "jaw", 0), ("eyes", "eye", 1)]:
        pulled, index = still.copy(), looks.places()[part]
        pulled[index, axis] = 1.5 * (pulled[index, axis] - pulled[index, axis].mean()) + pulled[index, axis].mean()
        assert looks.measures(pulled)[name] == pytest.approx(1.5 * looks.measures(still)[name], rel=1e-4)


def test_captions_tell_some_looks_on_both_sides_of_the_noun(people):
    rng, found = np.random.default_rng(2), looks.looks(people[1])
    early, late = Counter(), Counter()
    for _ in range(600):
        who, more = looks.told("woman", found, rng)
        assert who.endswith("woman")
        early.update(before for before, _ in found if f"{before} " in f"{who} ")
        late.update(after for _, after in found if after and after in more)
        assert len(more.replace(" and ", ", ").split(", ")) <= looks.MOST[1]
    assert all(early[before] > 100 for before, _ in found)
    assert all(late[after] > 40 for _, after in found if after)


def test_retold_captions_hold_looks_of_the_record_alone(people, plain):
    record = render(people[1], plain, 64).record
    words = {word for look in record["looks"] for form in look for word in form.replace(",", "").split()}
    words |= set(f"{record['caption']} a an photo portrait of with and".split())
    told = [view.retold(record, np.random.default_rng(seed)) for seed in range(200)]
    assert all(set(text.replace(",", "").split()) <= words for text in told)
    assert 0.4 < sum(text.endswith(record["caption"]) or " with " not in text for text in told) / 200 < 0.95
    assert not any(form and form in record["caption"] for look in record["looks"] for form in look)
