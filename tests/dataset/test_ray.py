"""The same units by Ray on two raylets of this machine; a worker's process and then a whole raylet are killed."""

from __future__ import annotations

import socket
import subprocess
from collections import Counter

import psutil
import pytest
from omniportrait.lab.make.web import Web
from omniportrait.training.dataset import ledger
from omniportrait.training.dataset.cluster import settings
from omniportrait.training.dataset.unit import work
from runs import LAYER, arguments, done, entries_of, in_hand, variables, wait_for

pytestmark = pytest.mark.slow
OWN = {"attempt", "tar", "fetched_at", "cpu_ms", "face_ms"}
"""Columns of a ledger that differ between two runs."""
HEALTH = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}
"""A raylet that does not answer is given up after seconds, not after a quarter of a minute."""


def ray(*words: str, environment: dict[str, str]) -> None:
    command = [str(LAYER), "-m", "ray.scripts.scripts", *words]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def cluster(tmp_path):
    """A head without CPUs and two raylets with one each, on loopback, with a token of their own: its address, and the
    environment for those that use it."""
    token, address = tmp_path / "token", f"127.0.0.1:{free_port()}"
    token.write_text("ab" * 32)
    own = {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_worker_niceness": "0"}
    environment = variables() | settings() | own | HEALTH
    common = ["--disable-usage-stats", "--object-store-memory=80000000", "--include-log-monitor=false"]
    port = address.partition(":")[2]
    head = ["--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
    head.append("--no-monitor")  # of an autoscaler
    try:
        ray("start", *head, *common, environment=environment)
        for _ in range(2):
            ray("start", f"--address={address}", "--num-cpus=1", *common, environment=environment)
        yield address, environment
    finally:
        roots = [each for each in psutil.process_iter() if token_of(each) == str(token)]
        mine = {
            child for root in roots for child in (root, *root.children(recursive=True))
        }  # some lose their variables
        for process in mine:
            process.kill()
        psutil.wait_procs(mine, timeout=60)


def token_of(process: psutil.Process) -> str:
    try:
        return process.environ().get("RAY_AUTH_TOKEN_PATH", "")
    except psutil.Error:
        return ""


def raylets(environment: dict[str, str]) -> list[psutil.Process]:
    """Those of this cluster, the head's first."""
    there = (each for each in psutil.process_iter(["name"]) if each.info["name"] == "raylet")
    found = [each for each in there if token_of(each) == environment["RAY_AUTH_TOKEN_PATH"]]
    return sorted(found, key=lambda each: each.create_time())


def test_a_process_and_a_machine_die_and_nothing_is_lost_or_doubled(cluster, tmp_path, planned):
    address, environment = cluster
    with Web(delay=0.3) as site:
        rows = [{"url": f"{site.home}/portrait/{n}", "text": "a woman"} for n in range(10)]
        recipe = {"fetch__private": site.place, "fetch__robots": False, "fetch__a_host": 1, "unit": 2}
        folder, alone = planned(tmp_path / "out", rows, **recipe), planned(tmp_path / "alone", rows, **recipe)
        words = arguments("run", "--out", folder.root, "--engine", "ray", "--address", address)
        driver = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_for(driver, lambda: in_hand(folder))
        tasks = [each for node in raylets(environment) for each in node.children() if each.name() == "ray::remote"]
        tasks[0].kill()
        before = done(folder)
        wait_for(driver, lambda: done(folder) > before)
        raylets(environment)[-1].kill()
        output, _ = driver.communicate(timeout=900)
        assert driver.returncode == 0, output
        by_ray = entries_of(folder)
        site.delay = 0.0
        for name, _ in alone.unit_names():
            work(str(alone.root), name)
    assert Counter(entry["status"] for entry in by_ray) == {"kept": 10}
    assert [same(entry) for entry in by_ray] == [same(entry) for entry in entries_of(alone)]


def same(entry: dict) -> dict:
    """What has to be equal whoever does the unit."""
    return {name: entry[name] for name in set(ledger.COLUMNS) - OWN}
