"""Who is portrayed, by which prompts, with which settings, and by which methods."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from . import workflow as workflows
from .workflow import Bound, bind

HERE = Path(__file__).parent
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
SAMPLING = ("steps", "cfg", "sampler_name", "scheduler")
SIZE = ("width", "height")


@dataclass(frozen=True)
class Prompt:
    """text holds {subject}."""

    id: str
    text: str
    category: str = ""


@dataclass(frozen=True)
class Person:
    """photo: the one that methods see. others: further photographs, which only judges see."""

    id: str
    photo: Path
    subject: str
    others: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Method:
    """A workflow with a name. subject_as: how the subject is written for it, as PhotoMaker's trigger word asks; judges
    see the plain prompt."""

    name: str
    bound: Bound
    subject_as: str = "{subject}"


@dataclass(frozen=True)
class Protocol:
    """inputs: what all methods are sampled with, by input name; sets: further inputs, by `CLASS.input`."""

    prompts: tuple[Prompt, ...]
    inputs: Mapping[str, object] = field(default_factory=dict)
    sets: Mapping[str, object] = field(default_factory=dict)
    methods: tuple[str, ...] = ()


def read_protocol(path: Path) -> Protocol:
    """From YAML: `prompts` by category, `inputs`, `set`, `methods`. ValueError names what is wrong."""
    content = _yaml(path, {"prompts", "inputs", "set", "methods"})
    prompts = []
    for category, texts in (content.get("prompts") or {}).items():
        prompts += [Prompt(f"{len(prompts) + i:02d}", text, category) for i, text in enumerate(texts)]
    if wrong := [prompt.text for prompt in prompts if "{subject}" not in prompt.text]:
        raise ValueError(f"{path.name}: the prompt {wrong[0]!r} has no {{subject}}.")
    return Protocol(
        tuple(prompts), content.get("inputs", {}), content.get("set", {}), tuple(content.get("methods", ()))
    )


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """A text file with a prompt a line, each with {subject}."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines or any("{subject}" not in line for line in lines):
        raise ValueError(
            f"{path}: each line should be a prompt with {{subject}} in it, as `a {{subject}} on the beach`."
        )
    return tuple(Prompt(f"{i:02d}", line) for i, line in enumerate(lines))


def read_people(folder: Path, subject: str | None) -> tuple[Person, ...]:
    """A photograph a person, or a folder a person whose first picture is the reference. `people.csv` in it (id,
    subject) says what each is called; else all are called `subject`. ValueError names what is missing."""
    table = folder / "people.csv"
    subjects: dict[str, str] = {}
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            subjects = {row["id"]: row["subject"].strip() for row in csv.DictReader(file)}
    people = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        photos = sorted(entry.iterdir()) if entry.is_dir() else [entry]
        photos = [photo for photo in photos if photo.suffix.lower() in PICTURES]
        name = entry.name if entry.is_dir() else entry.stem
        if photos:
            word = subjects.get(name) or subject
            if not word:
                raise ValueError(f"{name} has no subject: give --subject woman, or a people.csv with id,subject.")
            people.append(Person(name, photos[0], word, tuple(photos[1:])))
    if not people:
        raise ValueError(f"{folder} holds no photographs ({', '.join(PICTURES)}).")
    if twice := [name for name in {p.id for p in people} if sum(p.id == name for p in people) > 1]:
        raise ValueError(f"{folder}: there are two people named {twice[0]}.")
    return tuple(people)


def read_method(name: str, changes: Sequence[tuple[str, object]], binds: Mapping[str, str]) -> Method:
    """A shipped method by its name, or a file: a workflow in API format, or YAML with `workflow`, `name`, `set`,
    `bind` and `subject_as`. changes: `NODE.input` and value, over the method's own. ValueError names the file."""
    path = HERE / "methods" / f"{name}.yaml"
    path = path if path.is_file() else Path(name)
    if not path.is_file():
        shipped = ", ".join(sorted(each.stem for each in (HERE / "methods").glob("*.yaml")))
        raise ValueError(f"there is no method {name}: give a workflow's file, or one of {shipped}.")
    about: dict = {"workflow": path.name, "name": path.stem}
    if path.suffix in (".yaml", ".yml"):
        about |= _yaml(path, {"workflow", "name", "set", "bind", "subject_as"})
    try:
        workflow = workflows.read((path.parent / about["workflow"]).read_text(encoding="utf-8"))
        for where, value in changes:
            changed(workflow, where, value)
        for where, value in about.get("set", {}).items():
            if not workflows.change(workflow, where, value):
                raise ValueError(f"set {where}: there is no such node.")
        bound = bind(workflow, about.get("bind", {}) | dict(binds))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path.name}: {error}") from None
    return Method(about["name"], bound, about.get("subject_as", "{subject}"))


def changed(workflow: dict[str, dict], where: str, value: object) -> None:
    """`NODE.input`, or one of SAMPLING or SIZE for every node that is a sampler or an empty latent."""
    if "." in where:
        workflows.change(workflow, where, value)
        return
    for entry in workflow.values():
        inputs = entry["inputs"]
        sampler = where in SAMPLING and isinstance(inputs.get(where), int | float | str)
        latent = where in SIZE and entry["class_type"].startswith("Empty")
        if (sampler or latent) and where in inputs:
            inputs[where] = value


def swept(method: str, where: str, values: Sequence[object], changes: Sequence, binds: Mapping) -> list[Method]:
    """One method for each value of the input `NODE.input`. ValueError where it has no such node."""
    result = []
    for value in values:
        each = read_method(method, changes, binds)
        if not workflows.change(each.bound.prompt, where, value):
            raise ValueError(f"--sweep: {method} has no node for {where}.")
        result.append(replace(each, name=f"{each.name}, {where.rpartition('.')[2]} {value}"))
    return result


def _yaml(path: Path, known: set[str]) -> dict:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or set(content) - known:
        unknown = ", ".join(map(str, set(content) - known)) if isinstance(content, dict) else "no mapping"
        raise ValueError(f"{path.name}: it knows {', '.join(sorted(known))}, but the file has {unknown}.")
    return content
