"""What the methods cost: seconds and memory against a plain KSampler, a naive reference, and core's own SAG and PAG.

    python run.py bench overhead                                   # on a CPU: the demo, and SD1.5 at 16x16 latents
    python run.py bench overhead --models sdxl --side 16 --dtype bf16
    python run.py bench overhead --models sd15 sdxl --dtype fp16   # on a GPU: 64x64 and 128x128, as people use them
    python run.py bench overhead --models sdxl --dtype bf16 --comfy=--lowvram
    python run.py bench overhead --count                           # no run: the page anew, with the counts at full size

True architectures with random weights (speed does not depend on them), Euler on the normal schedule, cfg 7.5, a mask
by hand. All ways run by turns, so that a busy machine slows all alike; a step is the mean over a run's calls in the
guided window, and numbers are medians over the rounds. One more round counts floating-point operations: the floor under
what is measured, for these shapes. Results are kept in a JSON-lines file, the newest in force, and
docs/results/overhead.md is written from it, after the floors of SD1.5 at 512x512 and SDXL at 1024x1024 by count alone.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ... import environment
from .kept import keep, kept

ROOT = environment.ROOT
SIDES = {"demo": 32, "sd15": 64, "sdxl": 128}
LOWER = {"demo": 0, "sd15": 3, "sdxl": 0}
"""The first output block of the level at whose end the features are taken."""
GOALS = {"step": 1.45, "whole": 1.27, "naive": 1.6, "reference": 4.0, "memory": 1536.0, "off": 1.0,
         "attention": 1.5, "cached": 1.1, "wide": 3.1}  # fmt: skip
"""memory: MiB over plain, for SDXL at 1024x1024 with checkpointing `auto`; off: MiB at strength 0, mere rounding."""
OFF = "RB-Guidance, strength 0"
BY_COUNT = {"Reference Attention": "attention", "Reference Attention, cached": "cached", "IC-Portrait": "wide"}
"""Ways and their goals: a step by its arithmetic, in plain steps."""


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py bench overhead", allow_abbrev=False)
    parser.add_argument("--models", nargs="+", choices=list(SIDES), metavar="NAME", help="demo, sd15, sdxl")
    parser.add_argument("--side", type=int, metavar="N", help="latent side (CPU: 16; GPU: 64 for SD1.5, 128 for SDXL)")
    parser.add_argument("--dtype", choices=["fp32", "fp16", "bf16"], help="weights (CPU: fp32; GPU: fp16)")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="ways whose names hold a word, and plain")
    parser.add_argument("--count", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--comfy", action="append", default=[], metavar="ARGUMENT", help="one more of ComfyUI's own")
    parser.add_argument("--results", type=Path, default=ROOT / "output" / "overhead.jsonl", metavar="FILE")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "overhead.md", metavar="FILE")
    return parser.parse_args(arguments)


@dataclass(frozen=True)
class Line:
    """One way on one model. step: a call of the guided window, in the mean, over a plain one; floor: the same of the
    arithmetic alone; whole: a run over a plain one, the reference's features made anew; reference: those features in
    plain calls; peak: MiB over the plain run's peak."""

    setup: str
    way: str
    plain_seconds: float
    step: float
    floor: float
    whole: float
    reference: float
    peak: float


def load(name: str, dtype: str) -> object:
    """A MODEL of the true size."""
    import comfy.supported_models
    import torch

    from ...demo.architecture import UNET
    from ..testbed import small

    kinds = {
        "demo": (comfy.supported_models.SD15, UNET),
        "sd15": (comfy.supported_models.SD15, small.SD15_FULL),
        "sdxl": (comfy.supported_models.SDXL, small.SDXL_FULL),
    }
    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return small.unet(*kinds[name], dtype=types[dtype])


def measure(name: str, dtype: str, side: int, options: argparse.Namespace) -> list[Line]:
    """Every way on one model, by turns."""
    from ..testbed import small
    from .contenders import WINDOW_SIGMA, contenders, counted_run, timed_run

    model, vae = load(name, dtype), small.vae()
    ways = contenders(LOWER[name])
    ways = [w for w in ways if w is ways[0] or not options.only or any(word in w.name for word in options.only)]
    runs: dict[str, list] = {way.name: [] for way in ways}
    small.sample(model, small.conditioning(model, 1), steps=1, size=(side, side))  # ComfyUI loads the model
    for number in range(options.rounds):
        for way in ways:
            try:
                runs[way.name].append(timed_run(way, model, vae, side, options.steps))
            except Exception as error:
                print(f"  {way.name} cannot run here: {type(error).__name__}: {error}", flush=True)
                continue
            print(f"  round {number + 1}: {runs[way.name][-1].whole:7.2f} s  {way.name}", flush=True)
    counted = {way.name: counted_run(way, model, vae, side, options.steps) for way in ways if runs[way.name]}
    where = f"{name}, {side}x{side} latent, {dtype}, {device_name(model)}, {core_version()}, "
    where += f"{options.steps} steps, {options.rounds} rounds"
    return lines_of(" ".join([where, *options.comfy]), runs, counted, WINDOW_SIGMA)


def lines_of(setup: str, runs: Mapping[str, Sequence], counted: Mapping[str, object], window: float) -> list[Line]:
    """What several runs of each way, and one that counts, come to (`Metered`); the first way is plain. window: the
    highest guided sigma.

    A step is a mean over the window, not a median: some ways do their work at every second call, or in the first.
    """

    def step(metered: Sequence) -> float:
        inside = ([amount for sigma, amount in each.calls[1:] if sigma <= window] for each in metered)
        return statistics.median(map(statistics.fmean, inside))

    name, first = next(iter(runs.items()))
    plain, arithmetic = step(first), step([counted[name]])
    whole, base = (statistics.median(getattr(t, what) for t in first) for what in ("whole", "peak"))
    return [
        Line(
            setup,
            way,
            plain,
            step(times) / plain,
            step([counted[way]]) / arithmetic,
            statistics.median(t.whole for t in times) / whole,
            statistics.median(t.reference for t in times) / plain,
            (statistics.median(t.peak for t in times) - base) / 2**20,
        )
        for way, times in runs.items()
        if times
    ]


def device_name(model: object) -> str:
    import torch

    device = model.load_device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def core_version() -> str:
    try:
        from comfyui_version import __version__
    except ImportError:
        __version__ = "of unknown version"
    return f"ComfyUI {__version__}"


def table(lines: list[Line]) -> list[str]:
    """Markdown rows of one setup and the goals of the main way."""
    rows = [
        f"One plain call takes {lines[0].plain_seconds:.3f} s.",
        "",
        "| way | guided step / plain | its arithmetic | whole run / plain | reference, plain steps | peak, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        reference = f"{line.reference:.1f}" if line.reference else ""
        cells = (f"{line.step:.2f}", f"{line.floor:.2f}", f"{line.whole:.2f}", reference, f"{line.peak:+.0f}")
        rows.append(f"| {line.way} | {' | '.join(cells)} |")
    told = goals({line.way.split(":")[0]: line for line in lines})
    return [*rows, "", "Goals: " + "; ".join(told) + "."] if told else rows


def goals(by_name: Mapping[str, Line]) -> list[str]:
    """What the project promises of one setup, each with its verdict. Memory is judged on GPUs alone: a CPU's resident
    set is too rough."""
    ours, told = by_name.get("RB-Guidance"), []
    if ours:
        told += [
            f"guided step {ours.step:.2f} ({_verdict(ours.step, GOALS['step'])}; "
            f"its arithmetic alone {ours.floor:.2f})",
            f"whole run {ours.whole:.2f} ({_verdict(ours.whole, GOALS['whole'])})",
            f"reference {ours.reference:.1f} plain steps ({_verdict(ours.reference, GOALS['reference'])})",
        ]
        if "naive" in by_name and "every sigma" in by_name:
            naive, same = by_name["naive"], by_name["every sigma"]
            faster, floor = naive.step / same.step, naive.floor / same.floor
            met = "met" if faster >= GOALS["naive"] else "NOT met"
            told.append(
                f"at every sigma {faster:.2f} times faster a step than naive (goal {GOALS['naive']}, {met}; by "
                f"arithmetic {floor:.2f})"
            )
        if ours.setup.startswith("sdxl, 128x128") and ", CPU" not in ours.setup:
            told.append(f"peak memory {ours.peak:+.0f} MiB ({_verdict(ours.peak, GOALS['memory'])})")
    for way, goal in BY_COUNT.items():
        if way in by_name:
            told.append(f"{way} {by_name[way].floor:.2f} by arithmetic ({_verdict(by_name[way].floor, GOALS[goal])})")
    if OFF in by_name and ", CPU" not in by_name[OFF].setup:
        off = by_name[OFF].peak
        told.append(f"{off:+.0f} MiB at strength 0 (goal nothing, {'met' if off <= GOALS['off'] else 'NOT met'})")
    return told


def _verdict(value: float, goal: float) -> str:
    return f"goal {goal:g}, {'met' if value <= goal else 'NOT met'}"


def newest(path: Path) -> dict[str, dict[str, Line]]:
    """The last line of each way, by setup."""
    setups: dict[str, dict[str, Line]] = {}
    for line in kept(path, lambda row: ((row["setup"], row["way"]), Line(**row))).values():
        setups.setdefault(line.setup, {})[line.way] = line
    return setups


def floors() -> list[str]:
    """Markdown: by count, at full size, what no card is needed for."""
    from ..testbed import small
    from . import floor as _floor

    cases = {
        "SD1.5 at 512x512": (small.SD15_FULL, SIDES["sd15"], LOWER["sd15"]),
        "SDXL at 1024x1024": (small.SDXL_FULL, SIDES["sdxl"], LOWER["sdxl"]),
    }
    wide = _floor.wide_page(
        "SD1.5 at 512x512", *cases["SD1.5 at 512x512"][:2], lambda value: _verdict(value, GOALS["wide"])
    )
    return _floor.page(cases, lambda value, goal: _verdict(value, GOALS[goal])) + wide


def page(setups: dict[str, dict[str, Line]], floors: list[str]) -> str:
    """docs/results/overhead.md."""
    from ...backbone.unet import MEMORY_SHARE

    lines = [
        "# What the methods cost",
        "",
        "Made by `python run.py bench overhead`; do not edit. Each heading names a setup: model, latent size, weights, "
        "device, core, steps, rounds, and further arguments given to ComfyUI.",
        "",
        "True architectures with random weights, Euler on the normal schedule, cfg 7.5, guidance in the last 60% of "
        "the timesteps (u = 0.6), the reference's features made anew in each run (in use they are cached; the VAE's "
        "part in them, one picture, is left out, since a small VAE stands in). **RB-Guidance** is the nodes' own: a "
        "gradient at every second sigma, held in between; *every sigma* makes one at each, as the paper does. A "
        "guided step is the mean over the guided window; where that has an odd number of steps, more than half of "
        "them make a gradient. Medians over interleaved rounds. *Its arithmetic* is a guided step's floating-point "
        "operations over a plain step's, as torch counts those of convolutions and matrix products, forward and "
        "backward, on these shapes: no way can be faster than that unless its operations themselves run faster than "
        "a plain step's. Strength 0 is the node left in the workflow and switched off: how far it is from 1 shows "
        "the noise. `naive` runs a whole UNet forward of its own with autograd at every sigma and takes the same "
        "gradient as *every sigma*; that one runs the conditional rows alone and leaves after the feature block. "
        "SAG and PAG are core's own nodes, which work at every step, so their whole run is their step. **Reference "
        "Attention** runs the reference, one row beside the plain step's two, through the UNet at every step, as "
        "far as the last block that it reads, unless it finds the step's tokens in its cache (*cached*: it has run "
        "before with the same schedule). **IC-Portrait** runs the UNet over two pictures side by side, and one net of "
        "half its depth, at every step; nets that are copies of the UNet stand in. Peak memory is over the plain "
        "run's; on a CPU it is the process's resident "
        "set, which is rough. A fast GPU waits for the CPU that launches its kernels, and then operations do not "
        "count but calls do. The face's place is given by hand, but for *the face found by attention*, whose maps "
        "of the person's word are computed as well. Beyond what sampling does itself, a GPU is waited for once a "
        "prediction, to ask for its sigma (many samplers do as much, Euler does not), and where the face is found "
        "by attention once more for each gradient and conditioning with people: the maps go to the CPU, where the "
        "mask is cut and its largest part kept.",
        "",
        "First the floors at full size, counted without a run: the operations of the UNet's passes, forward and "
        "backward, over those of a plain CFG step. A whole run is 1 + 0.6 (guided step - 1): the reference's "
        "features, in the last column, come on top once and are cached. Memory is that of the activations in half "
        "precision at their highest, over a plain step's; what kernels use for themselves is not counted. "
        "Checkpointing, which keeps less and computes it again, is used where a pass would take more than "
        f"{MEMORY_SHARE:.0%} of the free memory, so the memory that the first way needs is there when it is taken.",
        *floors,
    ]
    for setup, ways in setups.items():
        lines += ["", f"## {setup}", "", *table(list(ways.values()))]
    return "\n".join(lines) + "\n"


def main(words: list[str]) -> int:
    options = options_of(words)
    environment.use_comfyui(*options.comfy)
    import comfy.model_management

    logging.getLogger("omniportrait").setLevel(logging.ERROR)
    gpu = comfy.model_management.get_torch_device().type != "cpu"
    dtype = options.dtype or ("fp16" if gpu else "fp32")
    names = [] if options.count else options.models or (["demo", "sd15", "sdxl"] if gpu else ["demo", "sd15"])
    setups = newest(options.results)
    if options.count and not setups:
        raise SystemExit(f"--count writes the page anew from the results in {options.results}, and there are none.")
    counts = floors()
    print("\n".join(counts), flush=True)
    options.page.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        side = options.side or (SIDES[name] if gpu or name == "demo" else 16)
        print(f"{name}, {side}x{side} latent, {dtype}", flush=True)
        lines = measure(name, dtype, side, options)
        print("\n".join(table(lines)), flush=True)
        for line in lines:
            keep(options.results, asdict(line))
        setups = newest(options.results)
        options.page.write_text(page(setups, counts))
    if options.count:
        options.page.write_text(page(setups, counts))
    print(f"wrote {options.page}")
    return 0
