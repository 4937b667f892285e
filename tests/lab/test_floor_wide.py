"""IC-Portrait's floor by count, against what is counted in a real run."""

import statistics

import pytest
from omniportrait.lab.bench.contenders import contenders, counted_run
from omniportrait.lab.bench.floor import WIDE, wide_floors
from omniportrait.lab.testbed import small

SIDE, STEPS = 16, 3


def test_the_count_is_that_of_a_run(vae):
    ways = {way.name: way for way in contenders(3)}

    def step(way: str) -> float:
        return statistics.fmean(amount for _, amount in counted_run(ways[way], small.sd15(), vae, SIDE, STEPS).calls)

    found = step(WIDE) / step("plain KSampler")
    assert found == pytest.approx(wide_floors(small.SD15, SIDE)[WIDE], rel=1e-4)


def test_it_has_no_nets_for_sdxl(vae):
    (way,) = [way for way in contenders(0) if way.name == WIDE]
    with pytest.raises(ValueError, match="no nets for this family"):
        way.prepare(small.sdxl(), vae)
