"""Who runs the units: processes of this machine, or Ray's on many. Units are idempotent, so either may run one again.

Both take the function as "module:name" of the pack, jobs as tuples of plain values, and yield each job with its result
or with Failed. What is in flight is bounded by the number of workers, whatever the number of jobs.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from ... import environment

TRIES = 5
"""Of a unit whose workers die: the second death already names the row that killed them."""
GRACE = 30.0
"""Seconds that units in hand are given when the driver is asked to stop."""
PRELOADED = ["__main__", f"{environment.PACKAGE}.training.dataset.look", "torchvision"]
"""Imported once and shared by all workers: `__main__` loads the pack, and torch takes seconds."""
MEMORY = 1 << 30
"""Bytes of a worker, nearly all of them torch's."""


@dataclass(frozen=True)
class Failed:
    """reason: one sentence."""

    reason: str


def call(function: str, job: tuple) -> object:
    """`function` is "training.dataset.unit:work"."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(f"{environment.PACKAGE}.{module}"), name)(*job)


class Slot:
    """A process of its own, so that its death is no other unit's; it ends with the driver."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        if context.get_start_method() == "forkserver":
            context.set_forkserver_preload(PRELOADED)
        reader, self.lifeline = context.Pipe(duplex=False)
        self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=_live_with, initargs=(reader,))

    def submit(self, function: str, job: tuple) -> Future:
        return self.pool.submit(call, function, job)

    def end(self) -> None:
        self.lifeline.close()
        self.pool.shutdown(wait=False, cancel_futures=True)


def _live_with(lifeline: multiprocessing.connection.Connection) -> None:
    """In a worker: end when the driver does. A forkserver's children do not notice otherwise."""

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            lifeline.recv()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    threading.Thread(target=watch, daemon=True).start()


def local(function: str, jobs: Iterable[tuple], workers: int) -> Iterator[tuple[tuple, object]]:
    """In processes of this machine. A KeyboardInterrupt gives what is in hand GRACE seconds."""
    todo = ((job, 1) for job in jobs)
    again: deque[tuple[tuple, int]] = deque()
    running: dict[Future, tuple[Slot, tuple, int]] = {}
    idle: list[Slot] = []
    try:
        while True:
            while len(running) < workers and (following := again.popleft() if again else next(todo, None)):
                slot = idle.pop() if idle else Slot()
                running[slot.submit(function, following[0])] = (slot, *following)
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                slot, job, tries = running.pop(future)
                error = future.exception()
                if not isinstance(error, BrokenProcessPool):
                    idle.append(slot)
                    yield job, Failed(f"{type(error).__name__}: {error}") if error else future.result()
                    continue
                slot.end()
                if tries < TRIES:
                    again.append((job, tries + 1))
                else:
                    yield job, Failed(f"its worker died {tries} times")
    except KeyboardInterrupt:
        wait(running, timeout=GRACE)
        raise
    finally:
        for slot in [*idle, *(slot for slot, _, _ in running.values())]:
            slot.end()


def on_ray(function: str, jobs: Iterable[tuple], address: str | None) -> Iterator[tuple[tuple, object]]:
    """As tasks of a Ray cluster, or of one of this machine alone where no address is given.

    A task whose process or machine dies is run again by Ray.
    """
    import ray

    from .cluster import check_nodes, portable

    os.environ["OMNIPORTRAIT"] = str(environment.ROOT)  # for a cluster of this machine alone; `join` sets it elsewhere
    ray.init(address=address, log_to_driver=False, configure_logging=False, include_dashboard=False)
    try:
        check_nodes(ray)
        options = {"num_cpus": 1, "memory": MEMORY, "max_retries": TRIES, "scheduling_strategy": "SPREAD"}
        task = ray.remote(**options)(portable(function))
        todo, running = iter(jobs), {}
        while True:
            slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
            while len(running) < 2 * slots and (job := next(todo, None)) is not None:
                running[task.remote(job)] = job
            if not running:
                return
            for reference in ray.wait(list(running), num_returns=1, timeout=5)[0]:
                job = running.pop(reference)
                try:
                    yield job, ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield job, Failed(str(getattr(error, "cause", None) or error).strip().splitlines()[-1])
    finally:
        ray.shutdown()
