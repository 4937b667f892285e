"""Two processes share the tests: one works from the front, the other from the back, until they meet.

`--side-by-side` starts a second pytest with the same arguments. Both collect everything. A file belongs to the process
that first makes the file's mark in a folder they share; tests/server counts as one file, so that one server serves it.
The files of tests/unit come last: they are many and short, so that neither process is alone for long at the end.
The second process writes its reports into that folder, and the first gives them to its own reporters: the summary and
the exit status are pytest's own, over everything.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED = "OMNIPORTRAIT_TESTS_SHARED"
"""Tells the second process the shared folder."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--side-by-side", action="store_true", help="share the tests between two processes")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.side_by_side and not config.option.collectonly:
        shared = os.environ.pop(SHARED, None)  # what tests start is no second process
        config.pluginmanager.register(Second(config, Path(shared)) if shared else First(config))


def file_of(item: pytest.Item) -> str:
    """What one process runs as a whole: a file, or all of tests/server."""
    folder, _, name = item.nodeid.split("::")[0].rpartition("/")
    return folder if folder == "server" else f"{folder}.{name}"


def files_of(session: pytest.Session, step: int = 1) -> list[list[pytest.Item]]:
    """The tests of each file, in the order in which a process claims them. step: -1 from the back."""
    files = [list(items) for _, items in itertools.groupby(session.items, file_of)]
    return sorted(files[::step], key=lambda items: file_of(items[0]).startswith("unit."))


class Process:
    """What both have in common: they claim files and run what they have claimed."""

    def __init__(self, config: pytest.Config, shared: Path) -> None:
        self.config, self.shared = config, shared

    def run(self, session: pytest.Session, files: list[list[pytest.Item]]) -> Iterator[pytest.Item]:
        """Run the claimed tests of these files; each test, once it has run.

        A file is claimed before the last test of the one before it runs, which needs to know what comes next: the
        fixtures of the session then stay.
        """
        items = self._claimed(files)
        item = next(items, None)
        while item:
            following = next(items, None)
            self.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            yield item
            stop_if_told(session)
            item = following

    def _claimed(self, files: list[list[pytest.Item]]) -> Iterator[pytest.Item]:
        for items in files:
            try:
                (self.shared / file_of(items[0])).mkdir()
            except FileExistsError:
                continue
            yield from items


class First(Process):
    """Starts the second process, runs tests itself, and reports everything."""

    def __init__(self, config: pytest.Config) -> None:
        super().__init__(config, Path(tempfile.mkdtemp(prefix="tests-")))
        self.log = self.shared / "second.log"
        command = [sys.executable, "-m", "pytest", *config.invocation_params.args]
        with self.log.open("wb") as log:
            variables = os.environ | {SHARED: str(self.shared)}
            self.second = subprocess.Popen(
                command, cwd=config.invocation_params.dir, env=variables, stdout=log, stderr=subprocess.STDOUT
            )
        (self.shared / "reports").touch()
        self.reports = (self.shared / "reports").open(encoding="utf-8")
        self.rest = ""
        self.done: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed and not self.config.option.continue_on_collection_errors:
            raise session.Interrupted(f"{session.testsfailed} errors during collection")
        files = files_of(session)
        last = {items[-1] for items in files}
        for item in self.run(session, files):
            self.done.add(item.nodeid)
            if item in last:
                self._relay(session)
        while self.second.poll() is None:
            time.sleep(0.2)
            self._relay(session)
        self._relay(session)
        if lost := [item.nodeid for item in session.items if item.nodeid not in self.done]:
            words = "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])
            raise session.Interrupted(f"the second process ended without {lost[0]} and {len(lost) - 1} more:\n{words}")
        return True

    def _relay(self, session: pytest.Session) -> None:
        """Report what the second process has reported since the last time."""
        *lines, self.rest = (self.rest + self.reports.read()).split("\n")
        hook = self.config.hook
        for line in lines:
            report = hook.pytest_report_from_serializable(config=self.config, data=json.loads(line))
            if isinstance(report.longrepr, list):  # JSON knows no tuple, which a skip's place and reason are
                report.longrepr = tuple(report.longrepr)
            if report.when == "setup":
                hook.pytest_runtest_logstart(nodeid=report.nodeid, location=report.location)
            hook.pytest_runtest_logreport(report=report)
            if report.when == "teardown":
                hook.pytest_runtest_logfinish(nodeid=report.nodeid, location=report.location)
                self.done.add(report.nodeid)
        stop_if_told(session)

    def pytest_unconfigure(self) -> None:
        if self.second.poll() is None:  # a SIGINT, so that it stops its server
            self.second.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)
            self.second.wait()
        self.reports.close()
        shutil.rmtree(self.shared, ignore_errors=True)


class Second(Process):
    """Runs tests from the back and writes their reports."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for _ in self.run(session, files_of(session, -1)):
            pass
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        with (self.shared / "reports").open("a", encoding="utf-8") as file:
            file.write(json.dumps(data) + "\n")


def stop_if_told(session: pytest.Session) -> None:
    """As pytest's own loop does after each test."""
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)
