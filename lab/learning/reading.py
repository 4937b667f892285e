"""Teaching a trained model to read words for people: a third of an hour for what captions alone had not taught at all.

Three things make it quick (measured in docs/portrait_world.md). Nouns are given a share of the attention on faces
(`nouns.py`), or a word's gradient is as small as their share. Words lie in directions that no text uses (`words.py`),
and what cross-attention reads there begins at zero and learns at a high rate, without having to unlearn anything; the
transformers around it learn at a tenth of the rate, the convolutions and the text encoder stay. And every noise level
counts alike (`levels.py`).
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from ...training.files import halved, write_tensors
from ...training.loop import Average, descend, learning_rate, seeded
from . import loop
from .denoising import Denoiser, begin_with, checkpoint, drawn
from .examples import Examples, cached_latents, cached_weights, of_file, stamps
from .nouns import look_at_nouns
from .pictures import Pictures, faces, open_pictures
from .text import tokenize
from .words import Sitters, Words, noun_columns, shape_size, with_words

LEAST_STEP = 300
"""Below this noise, of 1000 steps, a picture shows who it is by itself."""
BLOCKS = ("transformer_blocks", ".proj_in", ".proj_out")
"""What the parameters of the UNet's transformers have in their names."""
LEVELS = (500, 850)
"""Steps at which `gain` is measured."""


class Reader(nn.Module):
    """`plain`, a key or value projection of a text state, and beside it what is read of a word: `learnt` [out, K] of
    the state's component in `unused` [D, K], where `plain` no longer reads anything."""

    def __init__(self, plain: nn.Linear, size: int):
        super().__init__()
        self.plain = plain
        self.learnt = nn.Parameter(plain.weight.new_zeros(plain.out_features, size))
        self.register_buffer("unused", plain.weight.new_zeros(plain.in_features, size))

    @torch.no_grad()
    def lay(self, unused: torch.Tensor, keep: bool) -> None:
        """Take these directions out of `plain`; what it reads there is kept as learnt, or forgotten."""
        read = self.plain.weight @ unused
        self.unused.copy_(unused)
        self.learnt.copy_(read if keep else torch.zeros_like(read))
        self.plain.weight -= read @ unused.T

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.plain(states) + F.linear(states @ self.unused, self.learnt)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One projection that does both."""
        self.plain.weight += self.learnt @ self.unused.T
        return self.plain


def cross_attentions(model: nn.Module) -> Iterator[nn.Module]:
    return (layer for name, layer in model.named_modules() if name.endswith(".attn2"))


def install(model: Denoiser, size: int) -> list[Reader]:
    """Freeze the model and put a Reader of `size` directions into each cross-attention's keys and values."""
    model.requires_grad_(False)
    readers = []
    for layer in list(cross_attentions(model)):
        layer.to_k, layer.to_v = Reader(layer.to_k, size), Reader(layer.to_v, size)
        readers += [layer.to_k, layer.to_v]
    return readers


def transformer_blocks(model: Denoiser, but: list[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters of the UNet's transformers but for those, ready to learn: what was read of a word needs layers
    that make a face of it."""
    others = {id(value) for value in but}
    found = [
        value
        for name, value in model.unet.named_parameters()
        if any(part in name for part in BLOCKS) and id(value) not in others
    ]
    return [value.requires_grad_() for value in found]


def merged(model: Denoiser) -> Denoiser:
    """A copy without Readers that computes the same."""
    model = copy.deepcopy(model)
    for layer in list(cross_attentions(model)):
        layer.to_k, layer.to_v = layer.to_k.merged(), layer.to_v.merged()
    return model


def train(options: argparse.Namespace, pictures: Pictures) -> None:
    """Train to the end of the budget, or of this piece of it, and write `options.out` at each save."""
    device = loop.pick_device(options.device)
    torch.manual_seed(options.seed)
    shards, cache = stamps(options.data), options.data / "cache"
    latents = cached_latents(pictures, shards, options.vae or options.base, cache, device)
    records = plain_records(pictures)
    examples = Examples(latents, cached_weights(pictures, shards, cache), records, options.seed, LEAST_STEP)
    words = Words(shape_size())
    sitters = Sitters(records, words, cache / "people.npz", options.world_seed)
    model = Denoiser(examples.ids, "even").to(device, memory_format=torch.channels_last)
    goes_on = options.out.with_suffix(".state.pt").is_file() and not options.restart
    if not goes_on:
        begin(model, words, sitters, examples, pictures, latents, options, device)
    readers = install(model, words.unused.shape[1])
    if not goes_on:
        for reader in readers:
            reader.lay(words.unused, keep=options.words is not None)
    learnt = [reader.learnt for reader in readers]
    groups = [{"params": learnt[1::2]}, {"params": learnt[::2], "times": options.key_rate}]
    if options.blocks_rate:
        groups.append({"params": transformer_blocks(model, learnt), "times": options.blocks_rate})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    average = Average([value for group in groups for value in group["params"]], 0.99)
    budget = loop.budget_of(options)
    parts = {"model": model, "words": words, "optimizer": optimizer, "average": average}
    recipe = loop.recipe(options, pictures) | {"base": of_file(options.base)}
    state = loop.State(options.out, budget, parts, recipe)
    if goes_on:
        state.resume()
    sitters.describe()
    held_out = HeldOut(options, words, device) if any(options.data.glob("held_out-*.tar")) else None
    log = loop.Log(options.out.with_suffix(".log"))
    log.say(f"{len(latents)} pictures of {len(sitters.descriptions)} people, {device}")

    def finish() -> None:
        state.save()
        average.swap()
        if held_out:
            log.say(f"held-out people's words gain {held_out.gain(model, examples.weights)}")
        made = checkpoint(merged(model), options.vae or options.base, pictures, latents) | text_of(options.base)
        write_tensors(options.out, halved(made))
        average.swap()

    def step() -> dict[str, torch.Tensor]:
        rate = learning_rate(budget.share, budget.step, options.rate, warmup=20)
        losses = model.loss(*drawn(examples, sitters, options.share, options, budget.step, device))
        descend(losses["total"], optimizer, rate)
        return losses

    loop.advance(budget, log, options.batch, optimizer, average, step, finish, 30, 60 * options.save_minutes)


def plain_records(pictures: Pictures) -> list[dict]:
    """The pictures' records without looks: a frozen text encoder learns no new words."""
    return [record | {"looks": ()} for records in pictures.records for record in records]


def text_of(base: Path) -> dict[str, torch.Tensor]:
    """The text encoder of a checkpoint, which stays as it is with the words that no caption here holds."""
    state = safetensors.torch.load_file(base)
    return {name: value for name, value in state.items() if name.startswith("cond_stage_model.")}


def begin(
    model: Denoiser,
    words: Words,
    sitters: Sitters,
    examples: Examples,
    pictures: Pictures,
    latents: torch.Tensor,
    options: argparse.Namespace,
    device: torch.device,
) -> None:
    """The base's weights; then the words that it knows already, or attention that looks at nouns and words that fit the
    people and the captions."""
    begin_with(options.base, model)
    if options.words:
        words.taught(options.words)
        return
    chosen = torch.randperm(len(latents), generator=seeded(options.seed, 0))[:32]
    shown = latents[chosen].float(), faces(pictures.batch(chosen)[1]), examples.whole[chosen]
    if options.noun_share:
        look_at_nouns(model, *(part.to(device) for part in shown), options.noun_share)
    sitters.fit()
    with torch.no_grad():
        words.lay(model.text(examples.tokens[:: max(1, len(latents) // 64), 0].contiguous().to(device)).cpu())


class HeldOut:
    """Portraits of people who are never trained on, for `gain`."""

    def __init__(self, options: argparse.Namespace, words: Words, device: torch.device, most: int = 24):
        pictures = open_pictures(options.data, "held_out")
        cache = options.data / "cache"
        shards = stamps(options.data, "held_out")
        latents = cached_latents(pictures, shards, options.vae or options.base, cache, device)
        records = plain_records(pictures)
        sitters = Sitters(records, words, cache / "held_out_people.npz", options.world_seed)
        sitters.describe()
        turned = [index for index, record in enumerate(records) if record["background"] != "grey studio"]
        chosen = torch.tensor(turned)[torch.linspace(0, len(turned) - 1, min(most, len(turned))).long()]
        self.latents, self.tokens = latents[chosen].float(), tokenize([records[i]["caption"] for i in chosen])
        self.right = sitters.descriptions[sitters.who[chosen]]
        self.wrong = sitters.descriptions[others(sitters.who[chosen], [records[i]["subject"] for i in chosen])]
        self.words = words

    @torch.no_grad()
    def gain(self, model: Denoiser, weights: torch.Tensor, seed: int = 9) -> str:
        """By how much another person's word makes the loss larger, at LEVELS, in per cent: nothing else of a model's
        likeness is as cheap to measure, or as little disturbed by chance."""
        noise = torch.randn(self.latents.shape, generator=seeded(seed, 0))
        device, states = weights.device, model.text(self.tokens)
        found = []
        for level in LEVELS:
            sigma = model.sigmas[level]
            noisy = (self.latents + sigma * noise) / (1 + sigma**2).sqrt()
            errors = []
            for descriptions in (self.right, self.wrong):
                said = with_words(states, self.words(descriptions), noun_columns(self.tokens))
                parts = [
                    model.predict(x.to(device), torch.full((len(x),), level, device=device), s.to(device)).cpu() - n
                    for x, s, n in zip(noisy.split(8), said.split(8), noise.split(8), strict=True)
                ]
                errors.append(float((torch.cat(parts).square().mean(1) * weights.cpu()).mean()))
            found.append(f"{100 * (errors[1] / errors[0] - 1):.2f}% at {level}")
        return ", ".join(found)


def others(who: torch.Tensor, nouns: list[str]) -> torch.Tensor:
    """For each picture somebody else of the same noun: the next one in the list, round its end."""
    chosen = []
    for place, noun in enumerate(nouns):
        later = [*range(place + 1, len(nouns)), *range(place)]
        chosen.append(next((int(who[i]) for i in later if nouns[i] == noun and who[i] != who[place]), int(who[place])))
    return torch.tensor(chosen)


def arguments() -> argparse.ArgumentParser:
    """What `run.py make words` takes."""
    parser = argparse.ArgumentParser(prog="run.py make words", description=__doc__, allow_abbrev=False)
    loop.add_arguments(parser, minutes=40.0, batch=8, rate=2e-3)
    parser.add_argument("--base", type=Path, required=True, help="the checkpoint that is to learn")
    parser.add_argument("--vae", type=Path, help="the file whose autoencoder it is (default: --base)")
    parser.add_argument("--words", type=Path, metavar="FILE", help="state of the run that taught the base its words")
    parser.add_argument("--key-rate", type=float, default=0.15, help="the keys' learning rate, in --rate")
    parser.add_argument(
        "--blocks-rate", type=float, default=0.13, help="that of the transformers; 0: they stay as they are"
    )
    parser.add_argument(
        "--noun-share", type=float, default=0.65, help="attention on faces that nouns are to have; 0: leave it"
    )
    parser.add_argument("--share", type=float, default=0.85, help="of captions that have their person's word")
    parser.add_argument("--world-seed", type=int, default=0, help="`--seed` of `make pictures`")
    parser.add_argument("--save-minutes", type=float, default=5.0, help="between two saves")
    return parser
