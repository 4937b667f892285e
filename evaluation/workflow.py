"""A workflow in API format as a function of photograph, prompt, subject and seed: where each goes, and what is sampled.

Each is looked for in this order: `bind` (`NODE.input`), a node whose title is its name in braces, its name in braces
inside a text, and the graph itself: the only LoadImage, the texts behind `positive`, every literal seed, the SaveImage
behind VAE Decode.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

PICTURE, PHOTO, PROMPT, SUBJECT, SEED = ROLES = ("picture", "photo", "prompt", "subject", "seed")
TEXTS = ("text", "prompt", "value", "string", "text_g", "text_l", "clip_l", "t5xxl")
"""Names under which nodes hold a prompt."""
SEEDS = ("seed", "noise_seed")
SAVERS = ("SaveImage", "PreviewImage")

Place = tuple[str, str]
"""A node's id and one of its inputs."""


@dataclass(frozen=True)
class Bound:
    """A workflow that knows its places. prompt: what the picture needs, and nothing else. picture: the node that holds
    it in the end. places: by role, each with the template that is filled."""

    prompt: dict[str, dict]
    picture: str
    places: Mapping[str, Mapping[Place, str]] = field(default_factory=dict)

    def filled(self, values: Mapping[str, object], token: str) -> dict:
        """A prompt for the server. values: by role. token: makes the last node new to ComfyUI's cache, which would
        otherwise answer a repeated prompt without its picture."""
        prompt = copy.deepcopy(self.prompt)
        for role, places in self.places.items():
            for (node, name), template in places.items():
                held = prompt[node]["inputs"]
                held[name] = values[role] if template == braced(role) else held[name].replace(
                    braced(role), str(values[role])
                )  # fmt: skip
        saver = prompt[self.picture]
        saver["class_type"], saver["inputs"] = "PreviewImage", {"images": saver["inputs"]["images"], "cell": token}
        return prompt

    def told(self) -> list[str]:
        """A line for each role."""
        lines = [f"picture: {name_of(self.prompt, self.picture)}"]
        for role in ROLES[1:]:
            found = [f"{name_of(self.prompt, node)}.{name}" for node, name in self.places.get(role, ())]
            lines.append(f"{role}: {', '.join(found) or '-'}")
        return lines


def braced(role: str) -> str:
    return "{" + role + "}"


def name_of(prompt: Mapping[str, dict], node: str) -> str:
    """For people: `7 (Make the portrait)`."""
    title = prompt[node].get("_meta", {}).get("title") or prompt[node]["class_type"]
    return f"{node} ({title})"


def bind(workflow: Mapping[str, dict], given: Mapping[str, str]) -> Bound:
    """given: by role, `NODE.input`, or the node alone for the picture. ValueError, one sentence, for what is missing or
    can be understood in several ways."""
    if unknown := set(given) - set(ROLES):
        raise ValueError(f"bind knows no {min(unknown)}; it knows {', '.join(ROLES)}.")
    picture = _picture(workflow, given.get(PICTURE))
    kept = {node: workflow[node] for node in workflow if node in set(_behind(workflow, picture))}
    places = {role: _places(kept, role, given.get(role)) for role in ROLES[1:]}
    if not places[PROMPT]:
        raise ValueError(
            "no place for the prompt was found: write {prompt} into its text box, or give --bind prompt=NODE.input."
        )
    if not places[SEED]:
        raise ValueError("no seed was found: give --bind seed=NODE.input.")
    return Bound(kept, picture, {role: found for role, found in places.items() if found})


def _picture(workflow: Mapping[str, dict], given: str | None) -> str:
    if given is not None:
        if given not in workflow or "images" not in workflow[given]["inputs"]:
            raise ValueError(f"--bind picture={given}: there is no node {given} with an input images.")
        return given
    if titled := _titled(workflow, PICTURE):
        return titled[0]
    for kind in SAVERS:
        found = [node for node in workflow if workflow[node]["class_type"] == kind]
        decoded = [node for node in found if any(_is_decode(workflow, other) for _, other in links(workflow, node))]
        if len(found) == 1 or len(decoded) == 1:
            return (decoded or found)[0]
        if found:
            raise ValueError(f"several nodes save a picture: {_named(workflow, found)}; give --bind picture=NODE.")
    raise ValueError("no node saves a picture; give the workflow a SaveImage.")


def _is_decode(workflow: Mapping[str, dict], node: str) -> bool:
    return workflow[node]["class_type"].startswith("VAEDecode")


def _places(kept: Mapping[str, dict], role: str, given: str | None) -> dict[Place, str]:
    if given is not None:
        node, _, name = given.partition(".")
        if node not in kept or name not in kept[node]["inputs"]:
            raise ValueError(f"--bind {role}={given}: the picture needs no node {node} with an input {name}.")
        return {(node, name): braced(role)}
    if titled := _titled(kept, role):
        fitting = [place for place in _candidates(kept, role) if place[0] in titled]
        if not fitting:
            raise ValueError(f"{name_of(kept, titled[0])} has no input that could hold the {role}.")
        return dict.fromkeys(fitting, braced(role))
    if written := {place: text for place, text in _literals(kept, str) if braced(role) in text}:
        return written
    return dict.fromkeys(_by_structure(kept, role), braced(role))


def _by_structure(kept: Mapping[str, dict], role: str) -> list[Place]:
    found = _candidates(kept, role)
    if role == SEED:
        return found
    if role == PROMPT:
        positive = set(_positive(kept))
        found = [place for place in found if place[0] in positive]
        if len({kept[node]["inputs"][name] for node, name in found}) < 2:
            return found  # one text, wherever it is repeated
    if len(nodes := {node for node, _ in found}) > 1:
        ways = " or ".join(f"--bind {role}={node}.{name}" for node, name in found)
        raise ValueError(f"several nodes could hold the {role}: {_named(kept, sorted(nodes))}; give {ways}.")
    return found


def _candidates(kept: Mapping[str, dict], role: str) -> list[Place]:
    """Literal inputs of the right kind."""
    if role == SEED:
        return [place for place, _ in _literals(kept, int) if place[1] in SEEDS]
    names = {PROMPT: TEXTS, PHOTO: ("image",), SUBJECT: ("subject",)}[role]
    places = [place for place, _ in _literals(kept, str) if place[1] in names]
    return [place for place in places if role != PHOTO or kept[place[0]]["class_type"].startswith("LoadImage")]


def _literals(kept: Mapping[str, dict], kind: type) -> Iterator[tuple[Place, object]]:
    for node, entry in kept.items():
        for name, value in entry["inputs"].items():
            if isinstance(value, kind) and not isinstance(value, bool):
                yield (node, name), value


def _titled(kept: Mapping[str, dict], role: str) -> list[str]:
    return [node for node, entry in kept.items() if entry.get("_meta", {}).get("title", "").strip() == braced(role)]


def _named(workflow: Mapping[str, dict], nodes: list[str]) -> str:
    return ", ".join(name_of(workflow, node) for node in nodes)


def links(workflow: Mapping[str, dict], node: str) -> Iterator[tuple[str, str]]:
    """The inputs of a node that are linked, and the nodes behind them."""
    for name, value in workflow[node]["inputs"].items():
        if isinstance(value, list) and len(value) == 2 and str(value[0]) in workflow:
            yield name, str(value[0])


def _behind(workflow: Mapping[str, dict], node: str, without: str = "") -> Iterator[str]:
    """The node and all that it depends on, but for what comes in by inputs named `without`."""
    todo, seen = [node], set()
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            yield node
            todo += [other for name, other in links(workflow, node) if not without or without not in name]


def _positive(kept: Mapping[str, dict]) -> Iterator[str]:
    """What positive conditionings are made of."""
    for wanted in ("positive", "conditioning"):
        roots = [other for node in kept for name, other in links(kept, node) if name == wanted]
        if roots:
            for root in roots:
                yield from _behind(kept, root, without="negative")
            return


def change(workflow: dict[str, dict], where: str, value: object) -> int:
    """Set `TARGET.input`, in place; the target is a node's id, class or title. None takes the input away.

    Returns how many nodes had it. A node that has no such input is left alone, but for a class or id that names it.
    """
    target, _, name = where.rpartition(".")
    if not target:
        raise ValueError(f"{where}: write NODE.input, with the node's id, class or title.")
    count = 0
    for node, entry in workflow.items():
        if target in (node, entry["class_type"], entry.get("_meta", {}).get("title")):
            if name not in entry["inputs"]:
                raise ValueError(f"{where}: {name_of(workflow, node)} has {', '.join(entry['inputs'])}.")
            if value is None:
                del entry["inputs"][name]
            else:
                entry["inputs"][name] = value
            count += 1
    return count


def has(workflow: Mapping[str, dict], where: str) -> bool:
    """Whether a node is meant by `TARGET.input`."""
    target = where.rpartition(".")[0]
    return any(
        target in (node, entry["class_type"], entry.get("_meta", {}).get("title")) for node, entry in workflow.items()
    )


def read(text: str) -> dict[str, dict]:
    """A workflow from a file's text. ValueError where it is the page's own form."""
    workflow = json.loads(text)
    if not isinstance(workflow, dict) or "nodes" in workflow:
        raise ValueError("this is a workflow as the page saves it: export it there with Workflow > Export (API).")
    if not all(isinstance(node, dict) and "class_type" in node and "inputs" in node for node in workflow.values()):
        raise ValueError("this is no workflow in API format: each node needs a class_type and inputs.")
    return workflow
