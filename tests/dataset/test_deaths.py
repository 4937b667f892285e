"""Workers, drivers and disks that go away in the middle of a run: nothing is lost and nothing doubled."""

from __future__ import annotations

import signal
from collections import Counter

import psutil
import pytest
from omniportrait.lab.make.web import Web
from omniportrait.training.dataset.folder import Folder
from runs import done, entries_of, in_hand, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def slow(tmp_path, planned):
    """A web that takes its time: plans six units of so many pictures of it."""
    with Web(delay=0.3) as site:

        def plan(unit: int) -> Folder:
            rows = [{"url": f"{site.home}/portrait/{n}", "text": "a woman"} for n in range(6 * unit)]
            settings = {"fetch__private": site.place, "fetch__robots": False, "fetch__a_host": 2, "unit": unit}
            return planned(tmp_path / "out", rows, **settings)

        yield plan


def workers_of(driver: int) -> list[psutil.Process]:
    """The processes that do the units: what the forkserver has forked."""
    return [each for each in psutil.Process(driver).children(recursive=True) if each.ppid() != driver]


def test_a_worker_is_killed_then_the_driver_and_the_next_driver_goes_on(slow, dataset):
    folder = slow(2)
    driver = dataset.start("run", "--out", folder.root, "--workers", 2)
    wait_for(driver, lambda: in_hand(folder))
    refused = dataset("run", "--out", folder.root)
    assert refused.returncode == 1 and f"in use by process {driver.pid}" in refused.stderr
    workers_of(driver.pid)[0].kill()
    wait_for(driver, lambda: done(folder) >= 2)  # the driver lives, and its units are done all the same
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert psutil.wait_procs(family, timeout=300)[1] == []
    before = done(folder)
    assert 2 <= before < 6
    second = dataset("run", "--out", folder.root, "--workers", 1)  # the dead one's lock is no obstacle
    assert second.returncode == 0 and f"{6 - before} units done" in second.stdout
    assert Counter(entry["status"] for entry in entries_of(folder)) == {"kept": 12}
    assert not list(folder.work.glob("*/.*")) and len(list(folder.work.glob("*/*.tar"))) == 6


def test_the_disk_is_full_and_the_next_run_goes_on_until_it_is_asked_to_stop(slow, dataset):
    """Files of more than 30 kB cannot be written, as if the disk were full."""
    resource = pytest.importorskip("resource", reason="limits of files are POSIX's")

    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    folder = slow(4)
    full = dataset("run", "--out", folder.root, "--workers", 1, "--limit", 2, preexec_fn=small_disk)
    assert full.returncode == 1 and full.stderr.count("failed: OSError") == 2 and done(folder) == 0
    assert {path.suffix for path in folder.work.glob("*/*")} <= {".hand"}  # nothing half written
    driver = dataset.start("run", "--out", folder.root, "--workers", 1)
    wait_for(driver, lambda: done(folder) >= 1)
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=600)
    assert driver.returncode == 130 and not folder.lock.exists() and 1 <= done(folder) < 6


def test_a_folder_that_another_machine_works_on_is_left_alone(tmp_path, planned, dataset):
    """Its lock cannot be judged from here; --take-over says that it is dead."""
    folder: Folder = planned(tmp_path, [{"url": "http://127.0.0.1:9/x.jpg", "text": "a man"}], fetch__robots=False)
    folder.lock.write_text('{"host": "elsewhere", "pid": 1, "since": 0.0}')
    refused = dataset("run", "--out", tmp_path, "--limit", 0)
    assert refused.returncode == 1 and "process 1 on elsewhere" in refused.stderr
    assert dataset("run", "--out", tmp_path, "--limit", 0, "--take-over").returncode == 0 and not folder.lock.exists()
