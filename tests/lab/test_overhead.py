"""What the overhead benchmark makes of its stopwatches."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from omniportrait.lab.bench import overhead

GPU = "sdxl, 128x128 latent, fp16, NVIDIA X, ComfyUI 0.3.75"
CPU = "sdxl, 128x128 latent, fp16, CPU, 1 thread, ComfyUI 0.3.75"
SIGMAS = (14.0, 5.0, 2.0, 1.5, 1.0, 0.5)
"""The last four are guided."""


def times(*calls: float, whole: float = 10.0, reference: float = 0.0, peak: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        calls=list(zip(SIGMAS, calls, strict=True)), whole=whole, reference=reference, peak=peak * 2**20
    )


def test_a_way_that_works_at_every_second_call_costs_what_it_costs_in_the_mean():
    """Calls by turns at 3 and 1 plain steps cost two, which no median of them says; the first call warms up, and a
    round that was disturbed does not count."""
    runs = {
        "plain KSampler": [times(9, 1, 1, 1, 1, 1), times(1, 1, 1, 1, 1, 1), times(1, 1, 1, 1, 1, 8)],
        "every 2nd": [times(9, 1, 3, 1, 3, 1, whole=15, reference=2.5, peak=100)] * 2 + [times(9, 1, 3, 1, 3, 99)],
    }
    counted = {"plain KSampler": times(4, 4, 4, 4, 4, 4), "every 2nd": times(4, 4, 6, 4, 6, 4)}
    plain, second = overhead.lines_of("here", runs, counted, window=2.2)
    assert plain.step == plain.whole == plain.plain_seconds == plain.floor == 1.0 and plain.peak == 0.0
    assert second.floor == 1.25
    assert second.step == 2.0 and second.whole == 1.5 and second.reference == 2.5 and second.peak == 100.0


def line(way: str, setup: str = GPU, **values: float) -> overhead.Line:
    given = {"plain_seconds": 1.0, "step": 1.4, "floor": 1.25, "whole": 1.2, "reference": 3.0, "peak": 0.0}
    return overhead.Line(setup, way, **(given | values))


@pytest.mark.parametrize("peak, verdict", [(1500, "goal 1536, met"), (1600, "goal 1536, NOT met")])
def test_the_goals_of_memory(peak, verdict):
    """For SDXL at 1024 pixels on a GPU, and nothing at all at strength 0."""
    ways = {"RB-Guidance": line("RB-Guidance", peak=peak), overhead.OFF: line(overhead.OFF, peak=0.0)}
    told = "; ".join(overhead.goals(ways))
    assert f"peak memory +{peak} MiB ({verdict})" in told and "+0 MiB at strength 0 (goal nothing, met)" in told
    leaking = overhead.goals({overhead.OFF: line(overhead.OFF, peak=40.0)})
    assert leaking == ["+40 MiB at strength 0 (goal nothing, NOT met)"]
    rough = {name: line(name, setup=CPU, peak=peak) for name in ways}
    assert "MiB" not in "; ".join(overhead.goals(rough))
    small = {"RB-Guidance": line("RB-Guidance", setup=GPU.replace("128x128", "64x64"), peak=peak)}
    assert "MiB" not in "; ".join(overhead.goals(small))


def test_the_goals_of_time():
    """naive is compared with what makes a gradient as often as it does."""
    ways = {
        "RB-Guidance": line("RB-Guidance", step=1.5),
        "every sigma": line("every sigma", step=1.8, floor=1.6),
        "naive": line("naive: whole", step=2.7, floor=2.4),
    }
    told = overhead.goals(ways)
    assert told[0] == "guided step 1.50 (goal 1.45, NOT met; its arithmetic alone 1.25)"
    assert told[1] == "whole run 1.20 (goal 1.27, met)"
    assert "at every sigma 1.50 times faster a step than naive (goal 1.6, NOT met; by arithmetic 1.50)" in told
