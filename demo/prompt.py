"""The demo's prompt: its workflow with what the command line says."""

from __future__ import annotations

import argparse
import json
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .sampling import WORKFLOW

IC_WORKFLOW = WORKFLOW.with_name("ic_portrait_demo.json")
CHOSEN = "chosen"
"""Subfolder for the files that the command line names, so that no link takes the place of a file put there by hand."""


@dataclass(frozen=True)
class Choices:
    """What the command line says, checked. None leaves the workflow's own value."""

    checkpoint: Path | None
    pivot_encoder: Path | None
    prompt: str | None
    subject: str | None
    seed: int | None
    steps: int | None
    size: tuple[int, int] | None


def check(options: argparse.Namespace) -> Choices:
    """The command line's values, or SystemExit with one sentence."""
    check_together(options)
    size = None
    if options.size:
        match = re.fullmatch(r"(\d+)[xX](\d+)", options.size)
        size = (int(match[1]), int(match[2])) if match else (0, 0)
        if min(size) < 64 or size[0] % 8 or size[1] % 8:
            raise SystemExit(f"--size {options.size}: write WIDTHxHEIGHT in multiples of 8, at least 64x64.")
    if options.steps is not None and options.steps < 1:
        raise SystemExit(f"--steps {options.steps}: give at least 1.")
    return Choices(
        existing(options.checkpoint, "--checkpoint"),
        existing(options.pivot_encoder, "--pivot-encoder"),
        options.prompt,
        options.subject,
        options.seed,
        options.steps,
        size,
    )


def check_together(options: argparse.Namespace) -> None:
    """SystemExit for options that say nothing together."""
    for name in ("checkpoint", "pivot_encoder", "size") if options.ic else ():
        if getattr(options, name):
            raise SystemExit(
                f"--ic runs on the demo's own model, so it takes no --{name.replace('_', '-')}; for Stable Diffusion "
                "1.5 open the workflow ic_portrait_sd15 (`python run.py serve`)."
            )
    if options.style and not options.ic:
        raise SystemExit("--style is the picture that --ic paints the person into; add --ic.")


def existing(path: str | None, option: str) -> Path | None:
    if path is None:
        return None
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise SystemExit(f"{option} {path}: there is no such file.")
    return file


def node(prompt: dict, kind: str) -> dict:
    """Inputs of the only node of that class."""
    (found,) = nodes(prompt, kind)
    return found


def nodes(prompt: dict, *kinds: str) -> list[dict]:
    """Inputs of all nodes of these classes."""
    return [entry["inputs"] for entry in prompt.values() if entry["class_type"] in kinds]


def build_prompt(choices: Choices) -> dict:
    """The demo workflow with the user's choices in it."""
    prompt = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    pivots = nodes(prompt, "OmniPortraitPivotConditioning")  # of the plain word, and with the encoder
    samplers = nodes(prompt, "KSampler", "OmniPortraitRBGuidanceKSampler")
    latent = node(prompt, "EmptyLatentImage")
    if choices.checkpoint:
        node(prompt, "CheckpointLoaderSimple")["ckpt_name"] = os.path.join(CHOSEN, choices.checkpoint.name)
        guided = node(prompt, "OmniPortraitRBGuidanceKSampler")
        guided.update(guidance_of_the_nodes(guided))
    put(choices, pivots, samplers)
    size = choices.size or (default_size(choices.checkpoint) if choices.checkpoint else None)
    if size:
        latent["width"], latent["height"] = size
    if choices.pivot_encoder:
        name = os.path.join(CHOSEN, choices.pivot_encoder.name)
        node(prompt, "OmniPortraitPivotEncoderLoader")["pivot_encoder_name"] = name
    elif choices.checkpoint:  # the demo's encoder is of the demo model's family
        (loader,) = {pivot.pop("pivot_encoder")[0] for pivot in pivots if "pivot_encoder" in pivot}
        del prompt[loader]
    return prompt


def build_ic_prompt(choices: Choices) -> dict:
    """IC-Portrait's demo workflow with the user's choices in it."""
    prompt = json.loads(IC_WORKFLOW.read_text(encoding="utf-8"))
    put(choices, nodes(prompt, "OmniPortraitICConditioning"), nodes(prompt, "OmniPortraitICPortraitSampler"))
    return prompt


def put(choices: Choices, conditionings: Sequence[dict], samplers: Sequence[dict]) -> None:
    """Text, subject, seed and steps into the inputs of these nodes."""
    for told in conditionings:
        if choices.prompt:
            told["text"] = choices.prompt
        if choices.prompt or choices.subject:
            told["subject"] = choices.subject or guess_subject(told["text"])
    for name in ("seed", "steps"):
        if getattr(choices, name) is not None:
            for sampler in samplers:  # equal in all, or the comparison says nothing
                sampler[name] = getattr(choices, name)


def guidance_of_the_nodes(inputs: dict) -> dict[str, object]:
    """The nodes' own values of the guidance's inputs: what the demo's workflow has for the embedded model says nothing
    of another."""
    from ..guidance.omniportrait.settings import Settings

    own = asdict(Settings())
    return {name: own[name] for name in inputs if name in own} | {"feature_block": own["block"]}


def guess_subject(text: str) -> str:
    """The first word of the prompt that names a person. SystemExit that asks for --subject if there is none."""
    from ..sampling.words import find_noun

    if word := find_noun(text):
        return word
    raise SystemExit(f'No person was found in the prompt "{text}": say which of its words it is by --subject WORD.')


def default_size(checkpoint: Path) -> tuple[int, int]:
    """1024 for SDXL, known by its second text encoder in the file's header, else 512."""
    if checkpoint.suffix == ".safetensors":
        with checkpoint.open("rb") as file:
            length = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
            header = file.read(length) if length < 100_000_000 else b""
        if b'"conditioner.embedders.1.' in header:
            return 1024, 1024
    return 512, 512
