"""What `bench ic-portrait --portraits` measures, on pictures whose truth is known; nothing is sampled."""

from __future__ import annotations

import pytest
import torch
from omniportrait.lab.bench import ic_judge as judge
from omniportrait.lab.bench import ic_portraits as portraits
from omniportrait.lab.bench.portraits import stranger
from omniportrait.sampling.ic_passes import sized

SIZE = portraits.SIZE


@pytest.fixture(scope="module")
def pair():
    return judge.Pair(2, stranger(2))


@pytest.fixture(scope="module")
def measures():
    return judge.Measures()


def test_light_is_how_it_falls_and_not_how_bright_it_is():
    face = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    face[64:192, 64:192] = True
    grey = torch.full((3, SIZE, SIZE), 0.4)
    assert judge.light_error(2 * grey, grey, face) == pytest.approx(0.0, abs=1e-5)
    # A ramp from 0.5 to 1.5 of its mean across the face differs from an even light by 0.25 on average.
    ramp = grey * (0.5 + (torch.arange(SIZE) - 63.5) / 128).clamp(0.5, 1.5)
    assert judge.light_error(ramp, grey, face) == pytest.approx(0.25, abs=0.01)
    assert judge.light_error(ramp, ramp.flip(-1), face) == pytest.approx(0.5, abs=0.02)


def test_the_perfect_picture_is_the_person_in_the_styles_light_and_the_style_is_not(pair, measures):
    now = judge.seen(pair)
    perfect = measures(pair, now.target)
    style = measures(pair, sized(now.style.crop, SIZE)[0])
    assert perfect["light"] == 0 and style["light"] > 0
    assert perfect["person"] < perfect["other"] and perfect["nearer"] == 1
    assert style["person"] > style["other"] and style["nearer"] == 0
    assert style["around"] == pytest.approx(0.0, abs=1e-3)
    assert len(perfect["each"]) == 3


def test_the_pasted_face_is_the_profiles_and_its_surroundings_are_the_styles(pair, measures):
    now = judge.seen(pair)
    found = measures(pair, portraits.pasted(now))
    assert found["person"] < measures(pair, sized(now.style.crop, SIZE)[0])["person"]
    assert found["around"] == pytest.approx(0.0, abs=1e-3)


def test_a_picture_without_a_face_has_no_distance(pair, measures):
    row = measures(pair, torch.full((3, SIZE, SIZE), 0.5))
    assert row["person"] is None and row["false"] is None and row["each"] == []
    assert (row["nearer"], row["moles"], row["face"]) == (0, 0, 0)


def test_tables_give_the_spread_the_mean_and_the_difference_on_the_same_pairs():
    def row(who: int, person: float | None, each: list[float]) -> dict:
        return dict.fromkeys(judge.COLUMNS) | {"who": who, "person": person, "each": each, "nearer": 1.0}

    found = {
        portraits.PLAIN: [row(0, 0.5, [0.4, 0.6]), row(1, 0.7, [0.7])],
        "other": [row(0, 0.4, [0.4]), row(1, None, [])],
    }
    first, second = portraits.table(found).splitlines()[2:]
    assert first.startswith(f"| {portraits.PLAIN} | 0.40 / 0.60 / 0.70 | 0.600 [")
    assert second.startswith("| other | 0.40 / 0.40 / 0.40 | 0.400 [")
    (only,) = portraits.differences(found, portraits.PLAIN).splitlines()[2:]
    assert only.startswith("| other | **-0.100** [-0.100, -0.100] | – |")
