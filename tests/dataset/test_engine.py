"""What the driver does with its workers; the workers themselves are in test_deaths.py."""

from __future__ import annotations

from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest
from omniportrait.training.dataset import engine
from omniportrait.training.dataset.engine import Failed, local


@pytest.fixture
def slots(monkeypatch):
    """Workers that are done at once: with the job, or with an exception that the job is. All that there ever were."""
    made = []

    class Slot:
        ended = False

        def __init__(self) -> None:
            made.append(self)

        def submit(self, function: str, job: tuple) -> Future:
            assert not self.ended
            future = Future()
            future.set_exception(job[0]) if isinstance(job[0], Exception) else future.set_result(job[0])
            return future

        def end(self) -> None:
            self.ended = True

    monkeypatch.setattr(engine, "Slot", Slot)
    return made


def test_what_is_in_the_drivers_hands_does_not_grow_with_the_number_of_units(slots):
    drawn = 0

    def jobs():
        nonlocal drawn
        for drawn in range(1, 2001):
            yield (drawn,)

    for count, (job, result) in enumerate(local("x", jobs(), 3), 1):
        assert job == (result,) and drawn - count < 3
    assert count == 2000 and len(slots) == 3 and all(slot.ended for slot in slots)


def test_a_unit_whose_workers_die_is_given_up_and_the_others_are_done(slots):
    jobs = [(BrokenProcessPool(),), (1,), (OSError("No space left"),), (2,)]
    results = [result for _, result in local("x", jobs, 1)]
    assert sorted(map(str, results)) == sorted(
        map(str, [1, 2, Failed("its worker died 5 times"), Failed("OSError: No space left")])
    )
    assert len(slots) == 1 + 5 and all(slot.ended for slot in slots)
