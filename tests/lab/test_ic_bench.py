"""The flow's error in `bench ic-portrait`: none for the exact way, and for any other its distance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omniportrait.guidance.ic_portrait.flow import own_places
from omniportrait.lab.bench.ic_portrait import CELL, SIZE, error, other, shot, way


def test_the_exact_way_has_no_error_and_a_shift_its_length():
    lit, profile = shot(0, 1, "close"), shot(other(0, "close"), 0, "close")
    assert lit.person.subject == profile.person.subject and lit.person.number != profile.person.number
    exact = way(lit, profile)
    middle = slice(CELL // 2, None, CELL)
    places = torch.from_numpy(np.nan_to_num(exact.places[middle, middle])) / SIZE
    assert error(places[None], lit, profile) == (pytest.approx(0.0, abs=1e-4), 1.0)
    shifted = places + torch.tensor([3.0, -4.0]) / (SIZE / CELL)
    away, right = error(shifted[None], lit, profile)
    assert away == pytest.approx(5.0, abs=1e-3) and right == 0
    same = way(lit, lit)
    assert same.visible.sum() > 1000
    assert error(own_places(32, 32)[None], lit, lit)[0] == pytest.approx(0.0, abs=0.1)
