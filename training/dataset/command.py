"""`python run.py dataset plan|run|pack|make|status|forget|head|join`: the command line. docs/dataset.md explains it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path

from .folder import Folder, driver_lock, sweep

FAILURES = 20
"""Units that fail in a row before a run stops: the disk is full, or the network gone."""


def main(words: list[str]) -> int:
    given = parser().parse_args(words)
    try:
        return given.work(given) or 0
    except ValueError as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        print("Stopped; the same command goes on.", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="run.py dataset", description=__doc__, allow_abbrev=False)
    names = whole.add_subparsers(required=True, metavar="plan|run|pack|make|status|forget|head|join")
    out = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    out.add_argument("--out", type=Path, required=True, help="folder of the data set")
    planning, running, packing, locked = (argparse.ArgumentParser(add_help=False, allow_abbrev=False) for _ in range(4))
    planning.add_argument(
        "meta",
        nargs="+",
        metavar="META",
        help="parquet, CSV or JSON-lines files, folders of them, globs; or a folder of photographs",
    )
    planning.add_argument("--people", action="store_true", help="of photographs: each subfolder is one person")
    planning.add_argument("--recipe", default="plain", help="a YAML file, or laion, coyo, photographs, plain (default)")
    planning.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="e.g. fetch.seconds=10")
    _numbers(planning)
    running.add_argument("--engine", choices=("local", "ray"), default="local")
    running.add_argument("--address", help="of a Ray cluster: auto or HOST:PORT (default: one of this machine alone)")
    running.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of this machine")
    running.add_argument("--limit", type=int, metavar="UNITS", help="stop after so many units")
    running.add_argument(
        "--lost", type=float, default=0.5, metavar="SHARE",
        help="of a unit's rows without a connection, above which it is tried another time (default: 0.5)",
    )  # fmt: skip
    packing.add_argument("--shard-size", type=int, default=1000, help="samples in a shard (default: 1000)")
    locked.add_argument("--take-over", action="store_true", help="although a dead driver's lock is there")

    def command(name: str, work, parents: list, text: str) -> argparse.ArgumentParser:
        added = names.add_parser(name, parents=parents, help=text, description=text, allow_abbrev=False)
        added.set_defaults(work=work)
        return added

    command("plan", _plan, [out, planning], "select, cut into units and estimate; downloads nothing")
    command("run", _run, [out, running, locked], "fetch, look, keep; goes on where it was")
    command("pack", _pack, [out, packing, locked], "shards of what is kept, without copies")
    command("make", _make, [out, planning, running, packing, locked], "plan, run and pack in a row")
    command("status", _status, [out], "how far it is")
    command("forget", _forget, [out, locked], "take pictures out").add_argument("lists", nargs="+", metavar="LIST")
    head = command("head", _head, [], "start a Ray cluster on this machine")
    head.add_argument("--node-address", default="127.0.0.1", help="this machine's, as the others reach it")
    head.add_argument("--port", type=int, default=6379)
    command("join", _join, [], "give this machine to a cluster").add_argument("address", metavar="HOST:PORT")
    return whole


def _numbers(planning: argparse.ArgumentParser) -> None:
    """An option for each number of the estimate."""
    from .estimate import Numbers

    for each in fields(Numbers):
        kind = int if each.type == "int" else float
        name = "--" + each.name.replace("_", "-")
        planning.add_argument(name, type=kind, default=each.default, help=f"for the estimate (default: {each.default})")


def _plan(given: argparse.Namespace) -> None:
    from ..settings import parse_override
    from .estimate import Numbers, report
    from .recipe import read
    from .select import plan

    folder = Folder(given.out)
    planned = plan(folder, given.meta, read(given.recipe, dict(map(parse_override, given.set))), given.people)
    print(report(folder, planned, Numbers(**{each.name: getattr(given, each.name) for each in fields(Numbers)})))


def _run(given: argparse.Namespace) -> int:
    """Status 1 if units failed: the next call takes them again."""
    folder = Folder(given.out)
    folder.planned()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with driver_lock(folder, given.take_over):
        sweep(folder)
        jobs = ((str(folder.root), name, given.lost) for name, done in folder.unit_names() if not done)
        jobs = (job for _, job in zip(range(given.limit), jobs, strict=False)) if given.limit is not None else jobs
        failed = _units(jobs, given)
    return int(failed > 0)


def _units(jobs, given: argparse.Namespace) -> int:
    """Do the jobs and report on them; how many failed. SystemExit after FAILURES in a row."""
    from .engine import Failed, local, on_ray

    began, reasons, units, failed, streak = time.monotonic(), Counter(), 0, 0, 0
    function = "training.dataset.unit:work"
    results = on_ray(function, jobs, given.address) if given.engine == "ray" else local(function, jobs, given.workers)
    for (_, name, _), result in results:
        if isinstance(result, Failed):
            failed, streak = failed + 1, streak + 1
            print(f"{name} failed: {result.reason}", file=sys.stderr, flush=True)
            if streak >= FAILURES:
                raise SystemExit(f"{streak} units failed in a row, so the run stops; call it again when that is over.")
            continue
        streak, units = 0, units + 1
        reasons.update(result)
        rate = reasons.total() / max(time.monotonic() - began, 1e-9)
        print(f"{name}: {reasons['kept']:,} kept of {reasons.total():,}, {rate:.1f} rows a second", flush=True)
    print(f"{units:,} units done" + (f", {failed:,} failed: call the same command again." if failed else "."))
    return failed


def _pack(given: argparse.Namespace) -> None:
    from .pack import pack

    if given.shard_size < 1:
        raise ValueError("--shard-size must be at least 1.")
    made = pack(Folder(given.out), given.shard_size, given.take_over)
    print(
        f"{made['samples']:,} samples in {made['shards']:,} shard(s), of which {made['written']:,} are new; "
        f"{made['copies']:,} copies left out. Train with --data {Folder(given.out).shards}"
    )


def _make(given: argparse.Namespace) -> int:
    _plan(given)
    status = _run(given)
    _pack(given)
    return status


def _status(given: argparse.Namespace) -> None:
    from .status import report

    print(report(Folder(given.out)))


def _forget(given: argparse.Namespace) -> None:
    from .forget import forget

    taken = forget(Folder(given.out), given.lists, given.take_over)
    print(f"{taken['shards']:,} samples taken out of the shards, {taken['work']:,} out of the work.")


def _head(given: argparse.Namespace) -> int:
    from .cluster import head

    return head(given.node_address, given.port)


def _join(given: argparse.Namespace) -> int:
    from .cluster import join

    return join(given.address)
