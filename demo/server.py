"""A ComfyUI server of our own in a private folder: for the demo, `serve`, `evaluate` and the server tests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .client import Client, PromptError, sentence

START_SECONDS = 300
STOP_SECONDS = 15


@dataclass(frozen=True)
class Progress:
    """Where a running prompt is. share: 0 to 1 over all nodes; text: the node at work and its own steps."""

    share: float
    text: str


def link(source: Path, target: Path) -> None:
    """Make `target` show `source`, a file or a folder: by symbolic link, else as Windows allows, else as a copy."""
    with contextlib.suppress(OSError):  # no target yet, or a broken link
        if target.samefile(source):
            return None  # what was named lies there already; unlinking it would lose it
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target) if not _is_junction(target) else os.rmdir(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        return target.symlink_to(source, target_is_directory=source.is_dir())
    if source.is_dir():
        with contextlib.suppress(ImportError, OSError):
            import _winapi

            return _winapi.CreateJunction(str(source), str(target))
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*", "__pycache__", "output"))
    else:
        with contextlib.suppress(OSError):
            return os.link(source, target)
        shutil.copyfile(source, target)


def _is_junction(path: Path) -> bool:
    """A Windows junction: deleting through it would delete what it points to."""
    return os.path.realpath(path) != os.path.join(os.path.realpath(path.parent), path.name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class ComfyServer(Client):
    """A ComfyUI process; a context manager that always stops it.

    comfyui, python: which ComfyUI, and the Python that runs it. base: its private folder (`--base-directory`).
    custom_nodes: name in custom_nodes to folder. arguments: more of ComfyUI's own. echo: show its log, else it is kept
    in `base/server.log`.
    """

    def __init__(
        self,
        comfyui: Path,
        python: Path,
        base: Path,
        custom_nodes: dict[str, Path],
        *,
        port: int | None = None,
        listen: str = "127.0.0.1",
        arguments: tuple[str, ...] = (),
        echo: bool = False,
    ) -> None:
        self.comfyui, self.python, self.base, self.custom_nodes = comfyui, python, base, custom_nodes
        self.port = port or free_port()
        self.host = "127.0.0.1" if listen in ("0.0.0.0", "::") else listen
        super().__init__(f"http://{self.address}")
        self.listen, self.arguments, self.echo = listen, arguments, echo
        self.log = base / "server.log"
        self.process: subprocess.Popen | None = None
        self._given: dict[str, dict] = {}

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    # The process

    def __enter__(self) -> ComfyServer:
        for folder in ("custom_nodes", "input", "output", "temp", "user", "models/checkpoints"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        for name, folder in self.custom_nodes.items():
            link(folder, self.base / "custom_nodes" / name)
        command = [
            *(self.python, "-u", self.comfyui / "main.py", "--base-directory", self.base, "--port", self.port),
            *("--listen", self.listen, "--disable-auto-launch"),
            *("--database-url", f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}"),
            *self.arguments,
        ]
        with self.log.open("wb") as log:
            out = None if self.echo else log
            self.process = subprocess.Popen(list(map(str, command)), cwd=self.comfyui, stdout=out, stderr=out)
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise PromptError(
                    f"{self.log_tail()}\nComfyUI in {self.comfyui} stopped while it was starting, as its log says. "
                    "If it is your own and a package is missing, name the Python that runs it: --python PATH."
                )
            with contextlib.suppress(OSError, PromptError):
                self.get("/system_stats")
                return
            time.sleep(0.2)
        raise PromptError(f"ComfyUI did not answer within {START_SECONDS} seconds; its log is {self.log}.")

    def stop(self) -> None:
        """End the process, by force if it does not go."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its log; empty where the log was shown."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    # A prompt from its start to its end

    def run(self, prompt: dict, report: Callable[[Progress], None] = lambda progress: None) -> dict:
        """Queue a prompt in API format, follow it to its end and return its outputs by node id.

        Raises: PromptError with the failing node's own sentence.
        """
        with self.listening() as events:
            prompt_id, problem = self.queue(prompt)
            for progress in self.follow(events, prompt, prompt_id):
                report(progress)
        if problem:
            raise PromptError(problem)
        return self._with_cached(prompt, self.history(prompt_id)["outputs"])

    def _with_cached(self, prompt: dict, outputs: dict) -> dict:
        """The outputs of a prompt, with those of nodes that ComfyUI skipped because their results were in its cache: it
        leaves them out, so they are what the same nodes gave this client when they last ran."""
        keys = {node_id: json.dumps(_chain(prompt, node_id), sort_keys=True) for node_id in prompt}
        self._given |= {keys[node_id]: given for node_id, given in outputs.items() if node_id in keys}
        return {node_id: self._given[key] for node_id, key in keys.items() if key in self._given} | outputs

    def listening(self, client_id: str | None = None, seconds: float = 60) -> contextlib.closing:
        """A connection for the server's events to a client. It has to be there before a prompt is queued, or its end
        may be missed."""
        import websocket

        events, address = websocket.WebSocket(), f"ws://{self.address}/ws?clientId={client_id or self.client_id}"
        # Over a socket of our own: the package's own one goes through a proxy, whatever http_no_proxy says.
        events.connect(address, socket=socket.create_connection((self.host, self.port), seconds))
        return contextlib.closing(events)

    def follow(self, events, prompt: dict, prompt_id: str) -> Iterator[Progress]:
        """Where a queued prompt is, until it has ended; events: a connection that was there before it was queued.
        Raises: PromptError, as `run` does."""
        done: set[str] = set()
        current, steps = "", (0, 1)
        while True:
            message = self._next_event(events)
            data = message.get("data", {})
            if data.get("prompt_id", prompt_id) != prompt_id:
                continue
            kind = message.get("type")
            if kind == "execution_success":
                return
            if kind == "execution_error":
                raise PromptError(sentence(data.get("node_type", ""), data.get("exception_message", "")))
            if kind == "execution_interrupted":
                raise PromptError("The prompt was interrupted on the server.")
            if kind == "execution_cached":
                done.update(data.get("nodes", []))
            elif kind == "executing" and data.get("node"):
                done.discard(data["node"])
                if current:
                    done.add(current)
                current, steps = data["node"], (0, 1)
            elif kind == "progress":
                steps = (data.get("value", 0), max(data.get("max", 1), 1))
            else:
                continue
            share = (len(done) + steps[0] / steps[1]) / max(len(prompt), 1)
            yield Progress(min(share, 1.0), _title(prompt.get(current, {})) + _steps(steps))

    def _next_event(self, events) -> dict:
        """The next message in JSON; previews are binary. PromptError when the server has died."""
        import websocket

        while True:
            try:
                message = events.recv()
            except websocket.WebSocketTimeoutException:
                if self.process is None or self.process.poll() is None:
                    continue  # a long node without steps
                message = ""
            except (OSError, websocket.WebSocketException):
                message = ""
            if message == "":
                raise PromptError(f"{self.log_tail()}\nComfyUI ended while it was working, as its log above says.")
            if isinstance(message, str):
                return json.loads(message)


def _chain(prompt: dict, node_id: str) -> list:
    """A node and all that it depends on: equal for nodes that ComfyUI's cache takes for the same."""

    def part(value: object) -> object:
        linked = isinstance(value, list) and len(value) == 2 and str(value[0]) in prompt
        return [_chain(prompt, str(value[0])), value[1]] if linked else value

    node = prompt[node_id]
    return [node["class_type"], {name: part(value) for name, value in node["inputs"].items()}]


def _title(node: dict) -> str:
    return node.get("_meta", {}).get("title") or node.get("class_type", "")


def _steps(steps: tuple[int, int]) -> str:
    return f" {steps[0]}/{steps[1]}" if steps[1] > 1 else ""
