"""What `run.py dataset` costs: CPU a picture, a second worker, the driver's memory, a finished run called again.

    python run.py bench dataset                       # 240 pictures of a web on loopback: a few minutes
    python run.py bench dataset --pictures 1000

A third of the pictures are portraits in front of photographs, two thirds are photographs without people (a web mix has
fewer portraits still). CPU seconds are those of the ledgers: of the thread that looks, and of the loop that fetches.
Two workers are measured twice: by the clock, which means something on a machine with nothing else to do, and by CPU
time, which says how much longer a picture takes where a second worker runs beside the first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ... import environment
from ...training.dataset.folder import Folder
from ...training.dataset.ledger import query
from ...training.dataset.recipe import read
from ...training.dataset.select import plan
from ..make.web import Web

UNITS = (200, 20_000)
"""Numbers of finished units between which the driver's memory is compared."""
Row = tuple[str, str, str]
"""What was measured, the goal, the result."""


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="run.py bench dataset", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--pictures", type=int, default=240, help="default: 240")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as place:
        rows = [*costs(Path(place), given.pictures), *finished(Path(place))]
    load, cores = os.getloadavg()[0], os.cpu_count()
    print(f"\n{given.pictures} pictures; load of the machine at the end {load:.1f} on {cores} cores\n")
    print("| What | Goal | Measured |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def costs(place: Path, pictures: int) -> Iterator[Row]:
    """CPU a picture with one worker, and what a second one brings."""
    cpu, rate = {}, {}
    with Web() as site:
        kinds = ("person", "scene", "scene")
        rows = "".join(f"{site.home}/{kinds[n % 3]}/{n},a woman\n" for n in range(pictures))
        (place / "meta.csv").write_text("url,text\n" + rows)
        recipe = read("plain", {"fetch.private": site.place, "fetch.robots": False, "unit": 20, "fetch.a_host": 16})
        for workers in (1, 2):
            folder = Folder(place / f"workers-{workers}")
            plan(folder, [str(place / "meta.csv")], recipe)
            call(folder, "--workers", str(workers))
            cpu[workers], rate[workers] = measured(folder)
    whole, face = cpu[1]["all"]
    yield "pictures a second of one core", "at least 10", f"{1000 / whole:.1f} ({whole:.0f} ms a picture)"
    for kind in ("person", "scene"):
        milliseconds, its_face = cpu[1][kind]
        label = {"person": "portraits", "scene": "pictures without people"}[kind]
        yield f"… {label} alone", "", f"{1000 / milliseconds:.1f} ({milliseconds:.0f} ms, the detector {its_face:.0f})"
    yield "all but the face detector", "at most 25 % of a picture's CPU", f"{1 - face / whole:.0%}"
    yield "two workers, by CPU time", "at least 1.7 times one", f"{2 * whole / cpu[2]['all'][0]:.2f}"
    yield "two workers, by the clock", "at least 1.7 times one", f"{rate[2] / rate[1]:.2f}"


def measured(folder: Folder) -> tuple[dict[str, tuple[float, float]], float]:
    """Milliseconds of CPU a picture and of the detector in it, by kind; rows a second from the first to the last."""
    found = query(
        "SELECT split_part(url, '/', 4) AS kind, avg(cpu_ms), avg(face_ms) FROM read_parquet($1) "
        "GROUP BY ROLLUP (kind)",
        [folder.ledgers],
    )
    ((rows, seconds),) = query(
        "SELECT count(*), max(fetched_at) - min(fetched_at) FROM read_parquet(?)", [folder.ledgers]
    )
    return {kind or "all": (cpu, face) for kind, cpu, face in found}, rows / seconds


def finished(place: Path) -> Iterator[Row]:
    """A run whose units are all done: seconds, and the driver's memory."""
    memory = {}
    for units in UNITS:
        folder = Folder(place / f"finished-{units}")
        folder.root.mkdir()
        folder.plan.write_text("{}")
        for root in (folder.units, folder.work):
            for number in range(units):
                file = root / f"{number // 500:05d}" / f"unit-{number // 500:05d}-{number % 500:05d}.parquet"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
        began = time.monotonic()
        cpu, memory[units] = call(folder)
        clock = time.monotonic() - began
        yield (
            f"a run of {units:,} finished units, called again",
            "1 s + 1 ms a unit",
            f"{cpu:.1f} s of CPU, {clock:.1f} s",
        )
    few, many = (memory[units] / 1024 for units in UNITS)
    yield (
        "memory of the driver",
        "flat in the number of units",
        f"{few:.0f} MiB at {UNITS[0]}, {many:.0f} at {UNITS[1]:,}",
    )


def call(folder: Folder, *words: str) -> tuple[float, int]:
    """`run.py dataset run`: its own seconds of CPU without its workers', and its peak of memory, KiB."""
    code = "import resource, runpy, sys, atexit; atexit.register(lambda: print(*(getattr(resource.getrusage(\
resource.RUSAGE_SELF), name) for name in ('ru_utime', 'ru_stime', 'ru_maxrss')))); sys.argv = sys.argv[1:]; \
runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, environment.ROOT / "run.py", "dataset", "run", "--out", folder.root, *words]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    user, system, peak = done.stdout.splitlines()[-1].split()
    return float(user) + float(system), int(peak)
