"""The floors by count of bench overhead, against what is counted in real runs of UNets with real tensors."""

import statistics
import sys
from pathlib import Path

import pytest
import small
from omniportrait import run

sys.path.insert(0, str(Path(run.__file__).parent / "benchmarks"))

from _contenders import WINDOW_SIGMA, contenders, counted_run  # noqa: E402
from _floor import floors  # noqa: E402

SIDE, STEPS = 16, 4
"""Two of the steps are guided."""


@pytest.mark.parametrize("name, shape, lower", [("sd15", small.SD15, 3), ("sdxl", small.SDXL, 0)])
def test_the_count_is_that_of_a_run_but_for_the_comparison(name, shape, lower, vae, request):
    model, ways = request.getfixturevalue(name), {way.name: way for way in contenders(lower)}

    def run_of(way):
        """(operations of a guided step, of the reference)"""
        metered = counted_run(ways[way], model, vae, SIDE, STEPS)
        inside = [amount for sigma, amount in metered.calls if sigma <= WINDOW_SIGMA]
        assert len(inside) == 2
        return statistics.fmean(inside), metered.reference

    plain, _ = run_of("plain KSampler")
    for floor in floors(shape, SIDE, lower):
        step, reference = run_of(floor.way)
        assert reference / plain == pytest.approx(floor.reference, rel=1e-9), floor.way
        assert 0 < step / plain - floor.step < 1e-3, floor.way
