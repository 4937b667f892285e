"""`python run.py evaluate [STEP]`: portraits of given people by any workflow, judged, as a table.

docs/evaluation.md explains it. Without a step (check, generate, score, table, sheet) it makes what is missing, judges
it, and writes the table and the sheet.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import yaml

from .. import environment
from ..demo.client import Client, PromptError
from ..models.faces.mtcnn import BuiltInDetector
from ..training.files import write_whole
from . import pictures, protocol, table, workflow
from .cells import cells, share
from .generate import Campaign
from .options import EMBEDDED, parser
from .portrait import Album
from .protocol import HERE, Method, Person, Prompt, Protocol
from .score import Scores

FOLDERS = ("blip", "blip_text", "clip", "iqa", "facenet", "arcface", "inception")
"""Of the columns' files, in --weights."""
FOOT = (
    "Faces are found by the pack's built-in detector. The paper's rows are of other pictures and weights: compare "
    "their order, not their values."
)


class Evaluation:
    """What the command line asks for. SystemExit with one sentence where it cannot be done."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.world = embedded() if options.protocol == EMBEDDED else None
        self.protocol = self._protocol()
        self.people = self._people()
        self.swept: list[str] = []
        self.methods = self._methods()
        self.cells = cells(self.methods, self.people, self._prompts(), options.images, options.seed, options.each)
        self.mine = share(self.cells, *options.part) if options.part else self.cells
        """What this process makes and judges."""

    def _protocol(self) -> Protocol:
        given = self.options.protocol
        if self.world:
            return self.world.protocol()
        return protocol.read_protocol(HERE / "protocols" / f"{given}.yaml" if given == "paper" else Path(given))

    def _prompts(self) -> Sequence[Prompt]:
        if self.options.prompts:
            return protocol.read_prompts(self.options.prompts)
        return self.protocol.prompts

    def _people(self) -> tuple[Person, ...]:
        count = self.options.count
        if self.world:
            if self.options.people or self.options.prompts:
                raise ValueError("the embedded model's people and prompts are those that its measures know.")
            return self.world.people(self.options.out / "people", 0, count or 20)
        if not self.options.people:
            raise ValueError("give the people's photographs by --people FOLDER.")
        found = protocol.read_people(self.options.people, self.options.subject)
        return found[:count] if count else found

    def _methods(self) -> list[Method]:
        options = self.options
        changes = [] if options.as_is else [*self.protocol.inputs.items()]
        binds = {role: str(place) for role, place in options.bind}
        names = options.method or [*self.protocol.methods]
        own = [*changes, *self.protocol.sets.items(), *options.set]
        if options.checkpoint:
            own.append(("CheckpointLoaderSimple.ckpt_name", options.checkpoint))
        found = [protocol.read_method(name, own, binds) for name in names]
        if options.sweep:
            method, _, rest = options.sweep.partition(":")
            where, _, values = rest.partition("=")
            swept = protocol.swept(method, where, [yaml.safe_load(v) for v in values.split(",")], own, binds)
            self.swept = [each.name for each in swept]
            found += swept
        if not found:
            raise ValueError("give at least one --method.")
        for where, _ in options.set:
            if "." in where and not any(workflow.has(each.bound.prompt, where) for each in found):
                raise ValueError(f"--set {where}: no method has such a node.")
        if twice := [each.name for each in found if sum(each.name == other.name for other in found) > 1]:
            raise ValueError(f"two methods are named {twice[0]}.")
        return found

    # The steps

    def check(self, clients: Sequence[Client]) -> int:
        """Say what would be done, and what is in its way."""
        problems = 0
        for method in self.methods:
            print(f"{method.name}\n  " + "\n  ".join(method.bound.told()))
            for client in clients:
                known = client.get("/object_info")
                absent = sorted({node["class_type"] for node in method.bound.prompt.values()} - set(known))
                if absent:
                    problems += 1
                    print(f"  {client.url} has no {', '.join(absent)}: install the pack that brings it.")
        if self.world is None:
            places = [self.options.weights / name for name in FOLDERS]
            print("columns' files: " + ", ".join(f"{p.name} {'there' if any(p.glob('*')) else '-'}" for p in places))
        made = sum(cell.file(self.options.out).is_file() for cell in self.cells)
        print(f"{len(self.people)} people, {len(self.methods)} methods: {len(self.cells)} cells, {made} made")
        return int(bool(problems))

    def generate(self) -> None:
        """Make what is missing; a server is started for that alone."""
        options = self.options
        campaign = Campaign(options.out, options.patience, options.retry_errors)
        todo = campaign.missing(self.mine)[: options.limit]
        print(f"{len(self.mine)} cells, {len(todo)} to make", flush=True)
        if todo:
            with servers(options) as clients:
                campaign.make(clients, todo)

    def score(self) -> None:
        """Judge what is not judged yet."""
        scores, album = Scores(self.options.out), Album(BuiltInDetector())
        scores.judge(self._columns(), self.mine, album)
        if self.options.part:
            print("That was a share: when all are there, the same command without --part writes the table.", flush=True)
            return
        if self.world is None:
            scores.judge_sets([partial(frechet, self.options.weights, self.options.real)], self.cells)
            scores.notes += self._faceless(album)
        scores.save()

    def table(self) -> str:
        """The table as Markdown, CSV and JSON, and the curve, of what was judged."""
        options, out, scores = self.options, self.options.out, Scores(self.options.out)
        scores.recall()
        results = table.results_of(self.cells, scores, out)
        baseline = options.baseline or self.methods[0].name
        if baseline not in results.rows:
            raise ValueError(f"--baseline {baseline}: the methods are {', '.join(results.rows)}.")
        text = table.markdown(results, baseline, (*self._foot(), *scores.notes))
        write_whole(out / "table.md", text.encode())
        write_whole(out / "table.csv", table.as_csv(results).encode())
        write_whole(out / "table.json", json.dumps(self._settings(), indent=1).encode())
        if self.swept and not pictures.curve(results, self.swept, out / "curve.png"):
            print("There is no curve without a column for the prompt (CLIP-T) and one for the likeness.")
        return text

    def sheet(self) -> None:
        """The sheet of portraits."""
        if made := pictures.sheet(self.cells, self.options.out, self.options.rows):
            made.save(self.options.out / "sheet.jpg", quality=88)

    def _columns(self) -> list[Callable]:
        if self.world:
            return [self.world.LabColumns]
        return [partial(built_in, self.people), *(partial(column, self.options.weights) for column in by_file())]

    def _foot(self) -> Sequence[str]:
        prompts = {cell.prompt.id for cell in self.cells}
        told = f"{len(self.people)} people, {len(prompts)} prompts, seed {self.options.seed}; "
        inputs = ({} if self.options.as_is else dict(self.protocol.inputs)) | dict(self.options.set)
        told += ", ".join(f"{name} {value}" for name, value in inputs.items())
        return (told + ".", *(self.world.FOOT if self.world else (FOOT,)))

    def _faceless(self, album: Album) -> list[str]:
        """A sentence where nobody is found in a photograph."""
        names = [person.id for person in self.people if album.photo(person.photo).face is None]
        return [f"No face is found in the photograph of {', '.join(names)}: nothing can be like it."] if names else []

    def _settings(self) -> dict:
        """For whoever wants to know later."""
        return {
            "command": repeated(),
            "people": [[person.id, person.subject] for person in self.people],
            "prompts": {cell.prompt.id: cell.prompt.text for cell in self.cells},
            "methods": {method.name: method.bound.prompt for method in self.methods},
            "versions": {name: version(name) for name in ("torch", "open_clip_torch", "transformers")},
        }

    def publish(self) -> None:
        """The table, the sheet and the curve as they are, as a page."""
        text = (self.options.out / "table.md").read_text(encoding="utf-8")
        page, images = self.options.page, self.options.page.parent / "images"
        images.mkdir(parents=True, exist_ok=True)
        shown = ""
        for file in ("sheet.jpg", "curve.png"):
            if (made := self.options.out / file).is_file():
                name = f"{page.stem}_{file}"
                write_whole(images / name, made.read_bytes())
                shown += f"\n![{made.stem}](images/{name})\n"
        title = "Table 1 on the embedded model" if self.world else "Evaluation"
        write_whole(page, f"# {title}\n\nMade by `{repeated()}`; do not edit.\n\n{text}{shown}".encode())


def repeated() -> str:
    """The command line as people may repeat it: paths by their last name."""
    words = [re.sub(r"[^\s=:]*/", "", word) for word in sys.argv[1:]]
    return shlex.join(["python", "run.py", *words])


def embedded():
    """The laboratory's people, prompts and measures; they import ComfyUI."""
    environment.use_comfyui()
    from ..lab.bench import embedded as found

    return found


def built_in(people: Sequence[Person]):
    from .columns.faces import BuiltInFaces

    return BuiltInFaces(people)


def by_file() -> list[Callable[[Path], object]]:
    """The columns that need files, in the paper's order."""
    names = {"blip": ("Blip",), "clip": ("ClipColumns", "Iqa"), "faces": ("facenet", "arcface")}
    modules = {name: import_module(f".columns.{name}", __package__) for name in names}
    return [getattr(modules[name], each) for name, each_of in names.items() for each in each_of]


def frechet(weights: Path, real: Path | None):
    from .columns.frechet import Frechet

    return Frechet(weights, real)


@contextlib.contextmanager
def servers(options: argparse.Namespace) -> Iterator[list[Client]]:
    """Those that are named, or one of our own in the private folder."""
    if options.server:
        yield [Client(url) for url in options.server]
        return
    from ..demo import main as demo

    comfyui = environment.need_comfyui()
    python = demo.python_for(comfyui)
    demo.link_models(demo.BASE)
    arguments = ("--disable-metadata", *demo.said_device(python), *demo.model_paths(comfyui))
    with demo.ComfyServer(comfyui, python, demo.BASE, demo.CUSTOM_NODES, arguments=arguments) as server:
        yield [server]


def main(words: list[str]) -> int:
    options = parser(__doc__).parse_args(words)
    os.environ["HF_HUB_OFFLINE"] = "1"  # no library of a column downloads anything
    try:
        evaluation = Evaluation(options)
        if options.step == "check":
            with servers(options) as clients:
                return evaluation.check(clients)
        if options.step in (None, "generate"):
            evaluation.generate()
        if options.step in (None, "score"):
            evaluation.score()
        if options.step in (None, "table") and not options.part:
            print(evaluation.table())
        if options.step in (None, "sheet") and not options.part:
            evaluation.sheet()
        if options.page and not options.part and options.step not in ("generate", "score"):
            evaluation.publish()
    except (ValueError, PromptError, OSError) as error:
        raise SystemExit(f"evaluate: {error}") from None
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", flush=True)
        return 130
    return 0
