"""Hours, traffic and money, against a computation by hand."""

from __future__ import annotations

import pytest
from omniportrait.training.dataset import ledger
from omniportrait.training.dataset.estimate import Numbers, measured, needs, report

NUMBERS = Numbers(
    machines=2, cores=5, gbit=1.0, core_hour=0.04, terabyte=100.0, answer=0.5, cpu=0.1, kilobytes=200.0, kept=0.02
)


def test_what_so_many_addresses_need():
    """1.8 million answers: 180,000 seconds of ten cores, 0.36 TB through 2 Gbit/s."""
    assert needs(3_600_000, NUMBERS) == pytest.approx(
        {"core_hours": 50.0, "hours": 5.0, "terabytes": 0.36, "dollars": 38.0, "samples": 36_000.0}
    )


def test_a_slow_line_decides_the_hours():
    slow = needs(3_600_000, Numbers(**(vars(NUMBERS) | {"gbit": 0.01})))
    assert slow["hours"] == pytest.approx(0.36e12 * 8 / 0.02e9 / 3600) and slow["core_hours"] == pytest.approx(50.0)


def test_a_pilot_replaces_what_was_assumed(tmp_path, planned):
    folder = planned(tmp_path, [{"url": f"http://x/{n}", "text": "a man"} for n in range(8)], unit=4)
    assert measured(folder, NUMBERS) == (NUMBERS, 0)
    told = "assumed: run a pilot"
    assert told in report(folder, folder.planned(), NUMBERS)
    (name, _), *_ = folder.unit_names()
    kept = {"status": "kept", "bytes": 300_000, "cpu_ms": 90.0}
    results = (kept, kept | {"status": "no face found", "bytes": 100_000}, {"status": "HTTP 4xx", "cpu_ms": 20.0}, {})
    rows = ledger.read(folder.unit(name))
    ledger.write(folder.ledger(name), [row | result for row, result in zip(rows, results, strict=True)])
    numbers, count = measured(folder, NUMBERS)
    found = (numbers.answer, numbers.kept, numbers.kilobytes, numbers.cpu)
    assert count == 4 and found == pytest.approx((0.5, 0.5, 200.0, 0.1)) and numbers.machines == 2
    assert told not in report(folder, folder.planned(), NUMBERS)
