"""Two processes that share the tests: each test runs once, and one summary tells of all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import side_by_side

NOTES = """
import os, pathlib, time
PLACE = pathlib.Path({place!r})

def note(name):
    with (PLACE / "ran").open("a") as file:
        file.write(f"{{name}} {{os.getpid()}}\\n")

def wait(name):
    while not (PLACE / name).exists():
        time.sleep(0.05)
"""
MEET = {"test_a.py": "    (PLACE / 'began').touch()\n    wait('ran')\n", "server/test_d.py": "    wait('began')\n"}
"""The process of either file waits until the other one has begun."""


@pytest.fixture
def suite(tmp_path) -> Path:
    """Ten tests in five files, two of which count as one."""
    (tmp_path / "server").mkdir()
    for file in ("test_a.py", "test_b.py", "test_c.py", "server/test_d.py", "server/test_e.py"):
        tests = [f"def {Path(file).stem}_{k}():\n{MEET.get(file, '')}    note('{file} {k}')\n" for k in range(2)]
        (tmp_path / file).write_text(NOTES.format(place=str(tmp_path)) + "\n".join(tests))
    return tmp_path


def add(file: Path, *lines: str) -> None:
    with file.open("a") as more:
        more.write("\ndef test_more():\n" + "".join(f"    {line}\n" for line in lines))


def run(folder: Path, *words: str) -> tuple[int, str, str]:
    """(exit status, output, its last line without its rule) of pytest over such a folder."""
    command = [sys.executable, "-m", "pytest", "-p", "side_by_side", "--side-by-side", "-p", "no:cacheprovider", *words]
    variables = {"PYTHONPATH": str(Path(side_by_side.__file__).parent), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stdout.splitlines()[-1].strip("= ")


def test_each_test_runs_once_and_both_processes_work(suite):
    status, _, last = run(suite)
    assert status == 0 and last.startswith("10 passed in ")
    lines = [line.rsplit(" ", 1) for line in (suite / "ran").read_text().splitlines()]
    processes = dict(lines)
    assert len(lines) == len(processes) == 10 and len(set(processes.values())) == 2
    assert len({process for name, process in processes.items() if name.startswith("server")}) == 1


def test_a_failure_of_either_is_told_with_its_lines(suite):
    for file in ("test_a.py", "server/test_e.py"):
        add(suite / file, f"assert 1 == 2, '{file} is wrong'")
    status, told, last = run(suite)
    assert status == 1 and last.startswith("2 failed, 10 passed in ")
    for file in ("test_a.py", "server/test_e.py"):
        assert f"{file} is wrong" in told and f"FAILED {file}::test_more" in told


def test_a_skip_of_either_is_told_with_its_reason(suite):
    for file in ("test_a.py", "server/test_e.py"):
        add(suite / file, "import pytest", f"pytest.skip('{file} has its reason')")
    status, told, last = run(suite, "-ra")
    assert status == 0 and last.startswith("10 passed, 2 skipped in ")
    for file in ("test_a.py", "server/test_e.py"):
        assert f": {file} has its reason" in told


def test_a_second_process_that_dies_is_no_pass(suite):
    for file in ("test_a.py", "server/test_e.py"):  # each process runs one of them
        add(
            suite / file, f"if os.getppid() != {os.getpid()}:", "    print('last words', flush=True)", "    os._exit(9)"
        )
    status, told, _ = run(suite)
    assert status == 2 and "the second process ended without " in told and "::test_more" in told
