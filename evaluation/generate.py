"""Portraits over the API of running servers: resumable, failures recorded, never skipped in silence."""

from __future__ import annotations

import io
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..demo.client import Client, PromptError
from ..demo.server import ComfyServer
from ..training.files import write_whole
from .cells import Cell, Records, digest_of_photo
from .workflow import PHOTO, PROMPT, SEED, SUBJECT

FOLDER = "omniportrait_evaluate"
"""In the servers' input folder."""
ALIKE = 5
"""A method whose first so many cells all fail alike is given up."""
IN_A_ROW = 25
"""After so many failures of all methods, one after the other, it is the server that is at fault, and the rest is not
tried."""
LONGEST_WAIT = 60.0
MOST_PIXELS = 100_000_000


class ServerGone(Exception):
    """No answer for as long as one is willing to wait."""


class Campaign:
    """Makes what is missing. out: the folder. patience: seconds to wait for a server that has gone."""

    def __init__(self, out: Path, patience: float, retry: bool) -> None:
        self.out, self.patience, self.retry = out, patience, retry
        self.runs = Records(out / "runs.jsonl")
        self._lock = threading.Lock()
        self._gone: list[str] = []
        self._errors: dict[str, list[str]] = {}
        self._made: Counter[str] = Counter()
        self._streak = 0
        self._uploads: dict[tuple[str, str], str] = {}
        self._files: dict[str, Path] = {}

    def missing(self, cells: Sequence[Cell]) -> list[Cell]:
        """Cells without a picture, but for those that have failed before and are not tried again. What is there under
        another method's name, as where a sweep comes by it, is copied."""
        failed = set() if self.retry else {run["key"] for run in self.runs if run.get("error")}
        self._files = {cell.key: cell.file(self.out) for cell in cells if cell.file(self.out).is_file()}
        left = [cell for cell in cells if not cell.file(self.out).is_file() and not self._copied(cell)]
        return [cell for cell in left if cell.key not in failed]

    def _copied(self, cell: Cell) -> bool:
        twin = self._files.get(cell.key)
        if twin:
            write_whole(cell.file(self.out), twin.read_bytes())
        return twin is not None

    def make(self, clients: Sequence[Client], cells: Sequence[Cell]) -> None:
        """Make these cells, a thread for each server. SystemExit where a server has gone for good."""
        self._todo, self._total = iter(cells), len(cells)
        threads = [threading.Thread(target=self._work, args=(client,), daemon=True) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)  # so that Ctrl-C is heard
        if failed := sum(map(len, self._errors.values())):
            print(
                f"{failed} failed; --retry-errors tries them again. Their errors are in {self.runs.file}.", flush=True
            )
        if self._streak >= IN_A_ROW:
            raise SystemExit(f"{IN_A_ROW} portraits in a row failed, so the run stops: look at the server's own log.")
        if self._gone:
            raise SystemExit(f"{self._gone[0]} Call the same command again: it goes on where it was.")

    def _next(self) -> Cell | None:
        with self._lock:
            if self._streak >= IN_A_ROW:
                return None
            for cell in self._todo:
                if not self._hopeless(cell.method.name):
                    return cell
        return None

    def _hopeless(self, method: str) -> bool:
        errors = self._errors.get(method, [])
        return not self._made[method] and len(errors) >= ALIKE and len(set(errors)) == 1

    def _work(self, client: Client) -> None:
        while cell := self._next():
            if self._copied(cell):
                self._count(cell, "another method's")
                continue
            started = time.monotonic()
            try:
                content = self._picture(client, cell)
            except ServerGone as error:
                self._gone.append(str(error))
                return
            except PromptError as error:
                self._failed(cell, client, str(error))
                continue
            except (ValueError, KeyError) as error:
                self._failed(cell, client, f"The answer of {client.url} is none that ComfyUI gives ({error!r}).")
                continue
            write_whole(cell.file(self.out), content)
            seconds = time.monotonic() - started
            self.runs.add(cell.about() | {"seconds": round(seconds, 2), "server": client.url})
            self._files[cell.key] = cell.file(self.out)
            self._count(cell, f"{seconds:.1f} s")

    def _count(self, cell: Cell, told: str) -> None:
        with self._lock:
            self._made[cell.method.name] += 1
            self._streak = 0
            count = self._made.total() + sum(map(len, self._errors.values()))
        print(f"{count}/{self._total} {cell.method.name}, {cell.person.id}, {cell.text}: {told}", flush=True)

    def _failed(self, cell: Cell, client: Client, error: str) -> None:
        self.runs.add(cell.about() | {"error": error, "server": client.url})
        print(f"{cell.method.name}, {cell.person.id}, {cell.text}: {error}", flush=True)
        with self._lock:
            self._errors.setdefault(cell.method.name, []).append(error)
            self._streak += 1
            if self._hopeless(cell.method.name):
                print(f"{cell.method.name} is given up: its first {ALIKE} cells all failed so.", flush=True)

    def _picture(self, client: Client, cell: Cell) -> bytes:
        """The portrait as PNG. PromptError for the server's refusal, ServerGone."""
        own = isinstance(client, ComfyServer)  # nobody but this command would start it again
        waited, deadline = 1.0, time.monotonic() + (0 if own else self.patience)
        while True:
            try:
                return self._asked(client, cell)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ServerGone(f"The server {client.url} does not answer ({error}).") from None
                time.sleep(min(waited, LONGEST_WAIT, max(0.1, deadline - time.monotonic())))
                waited *= 2

    def _asked(self, client: Client, cell: Cell) -> bytes:
        values = {PROMPT: cell.text_for_method, SUBJECT: cell.person.subject, SEED: cell.seed}
        if PHOTO in cell.method.bound.places:
            place = client.url, digest_of_photo(cell.person.photo)
            if place not in self._uploads:
                self._uploads[place] = upload(client, cell.person.photo)
            values[PHOTO] = self._uploads[place]
        prompt_id, problem = client.queue(cell.method.bound.filled(values, cell.key))
        if problem:
            raise PromptError(problem)
        entry = finished(client, prompt_id)
        return png_of(client, entry, cell.method.bound.picture)


def upload(client: Client, photo: Path) -> str:
    """The photograph as PNG, upright and in 8 bits, under a name of its content."""
    from ..models.faces.file import open_picture

    picture, _ = open_picture(photo)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return client.upload(f"{digest_of_photo(photo)}.png", out.getvalue(), FOLDER)


def finished(client: Client, prompt_id: str) -> dict:
    """The history of a prompt, once it has ended. PromptError with a node's own sentence; ConnectionError where the
    server knows nothing of it any more, as after a restart."""
    wait, unknown = 0.05, 0
    while True:
        entries = client.get(f"/history/{prompt_id}")
        if prompt_id in entries:
            break
        queue = client.get("/queue")
        known = any(prompt_id in entry for part in queue.values() for entry in part)
        unknown = 0 if known else unknown + 1
        if unknown > 40:
            raise ConnectionError("it has lost the prompt")
        time.sleep(wait)
        wait = min(1.3 * wait, 0.2)
    entry = entries[prompt_id]
    for kind, data in entry.get("status", {}).get("messages", ()):
        if kind == "execution_error":
            message = " ".join(str(data.get("exception_message", "")).split())
            raise PromptError(f"{data.get('node_type', '')}: {message}")
        if kind == "execution_interrupted":
            raise PromptError("The prompt was interrupted on the server.")
    return entry


def png_of(client: Client, entry: dict, node: str) -> bytes:
    """The first picture of a node's outputs, encoded anew: a server's answer is a stranger's file."""
    images = entry.get("outputs", {}).get(node, {}).get("images", ())
    if not images:
        raise PromptError("The server ended the prompt without a picture.")
    image = images[0]
    content = client.fetch({name: image[name] for name in ("filename", "subfolder", "type")})
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG", "WEBP")) as file:
            if file.width * file.height > MOST_PIXELS:
                raise PromptError(f"The server's picture has {file.width} x {file.height} pixels.")
            out = io.BytesIO()
            file.convert("RGB").save(out, "PNG")
    except OSError as error:
        raise PromptError(f"The server's picture cannot be read: {error}.") from None
    return out.getvalue()
