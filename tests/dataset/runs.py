"""Runs of the command in processes of their own, and what is left of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from subprocess import Popen

from omniportrait import environment
from omniportrait.training.dataset import ledger, reasons
from omniportrait.training.dataset.folder import Folder

LAYER = environment.ensure_layer(environment.DATASET_LOCK)


def arguments(*words: object) -> list[str]:
    """`python run.py dataset WORDS` in the environment that run.py would find."""
    return [str(LAYER), str(environment.ROOT / "run.py"), "dataset", *map(str, words)]


def variables() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def wait_for(driver: Popen, condition: Callable[[], bool]) -> None:
    """Until it holds, for at most ten minutes."""
    for _ in range(6000):
        if condition():
            return
        assert driver.poll() is None, "the driver has ended"
        time.sleep(0.1)
    raise AssertionError("waited ten minutes")


def done(folder: Folder) -> int:
    """Units."""
    return sum(there for _, there in folder.unit_names())


def in_hand(folder: Folder) -> bool:
    """Whether an attempt has begun and not ended."""
    return any(folder.work.glob("*/*.hand"))


def entries_of(folder: Folder) -> list[dict]:
    """Of all ledgers; asserts that each planned row is there once, with a result of the closed list."""
    units = [name for name, there in folder.unit_names() if there]
    assert len(units) == folder.planned()["units"]
    entries = [entry for name in units for entry in ledger.read(folder.ledger(name))]
    planned = [row["uid"] for name in units for row in ledger.read(folder.unit(name))]
    assert sorted(entry["uid"] for entry in entries) == sorted(planned)
    assert {entry["status"] for entry in entries} <= {reasons.KEPT, *reasons.REASONS}
    return entries
