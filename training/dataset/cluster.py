"""A Ray cluster of machines with a clone of this repository each: `head` on the first, `join` on the others.

Ray asks nobody who they are by default, and whoever reaches its ports runs code. So a token is made on the head, which
the other machines and the driver need.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ... import environment

LOCK = environment.ROOT / "requirements-dataset.lock"
TOKEN = Path.home() / ".ray" / "auth_token"
"""Where Ray looks for it."""
WORKERS = range(10002, 20000)
"""Ports that Ray gives to its workers."""


def settings() -> dict[str, str]:
    """Environment of everything that belongs to the cluster: its workers find the pack, and strangers are refused."""
    return {"OMNIPORTRAIT": str(environment.ROOT), "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}


def head(address: str, port: int) -> int:
    """Start the cluster on this machine, which works too, and say how others join. Its exit status."""
    if port in WORKERS:
        raise SystemExit(f"--port {port} is one of those that Ray's workers take, {WORKERS[0]} to {WORKERS[-1]}.")
    if not TOKEN.is_file():
        import secrets

        TOKEN.parent.mkdir(parents=True, exist_ok=True)
        TOKEN.touch(mode=0o600)
        TOKEN.write_text(secrets.token_hex(32))
    status = start("--head", f"--node-ip-address={address}", f"--port={port}", "--include-dashboard=false")
    if status == 0:
        print(
            f"\nOn every other machine, in a clone of the same commit: copy {TOKEN} there, then\n"
            f"    python run.py dataset join {address}:{port}\n"
            f"Then here: python run.py dataset run --out FOLDER --engine ray --address {address}:{port}\n"
            "FOLDER must be one that every machine sees under the same name. Ray's ports belong behind a firewall: "
            "whoever has the token runs code on all machines."
        )
    return status


def join(address: str) -> int:
    """Give this machine to the cluster at HOST:PORT. Its exit status."""
    if not TOKEN.is_file():
        raise SystemExit(f"There is no {TOKEN}: copy it from the machine where `run.py dataset head` ran.")
    return start(f"--address={address}")


def start(*words: str) -> int:
    return subprocess.call([sys.executable, "-m", "ray.scripts.scripts", "start", *words], env=os.environ | settings())


def portable(function: str) -> Callable[[tuple], object]:
    """`engine.call` for a process that has not loaded the pack: nested, so that Ray pickles its code."""

    def remote(job: tuple) -> object:
        import importlib.util
        import os
        import sys

        if "omniportrait" not in sys.modules:
            path = os.path.join(os.environ["OMNIPORTRAIT"], "environment.py")
            spec = importlib.util.spec_from_file_location("omniportrait_environment", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            module.load_pack()
        return importlib.import_module("omniportrait.training.dataset.engine").call(function, job)

    return remote


def make_of() -> str:
    """What decides a machine's results: the commit, with a mark for changes, and the lock."""
    root = str(environment.ROOT)
    commit = subprocess.run(["git", "-C", root, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return f"{commit.stdout.strip() or 'no git'} {hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]}"


def check_nodes(ray) -> None:
    """SystemExit that names a machine whose code or lock differs from the driver's."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0)(portable("training.dataset.cluster:make_of"))
    mine, nodes = make_of(), [node for node in ray.nodes() if node["Alive"]]
    asked = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(n["NodeID"], soft=False)).remote(())
        for n in nodes
    ]
    for node, theirs in zip(nodes, ray.get(asked), strict=True):
        if theirs != mine:
            raise SystemExit(
                f"{node['NodeManagerAddress']} has {theirs}, and this machine {mine} (commit and lock): bring them to "
                "the same."
            )
